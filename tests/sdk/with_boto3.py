"""Amazon's Python SDK against the double."""

import base64
import hashlib
import io

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError  # noqa: F401 - what every refusal is

from common import (
    BUCKET, DATA, DOTTED_KEYS, ENDPOINT, EXPIRED, KEY, ODD_KEYS, REGION, TEMPORARY, equal, finish, refused,
)

SMALL = b"some bytes"
PART = 5 << 20


def client(key=KEY, region=REGION, **options):
    return boto3.client(
        "s3",
        endpoint_url=ENDPOINT,
        region_name=region,
        aws_access_key_id=key["id"],
        aws_secret_access_key=key["secret"],
        aws_session_token=key.get("token"),
        config=Config(retries={"total_max_attempts": 1}, **options),
    )


def code(error):
    return error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]


s3 = client()


def put(key, body, **options):
    return s3.put_object(Bucket=BUCKET, Key=key, Body=body, **options)


def get(key, **options):
    return s3.get_object(Bucket=BUCKET, Key=key, **options)["Body"].read()


def names(operation="list_objects_v2", **options):
    pages = list(s3.get_paginator(operation).paginate(Bucket=BUCKET, **options))
    return [o["Key"] for page in pages for o in page.get("Contents", [])], [
        p["Prefix"] for page in pages for p in page.get("CommonPrefixes", [])
    ]


keys = sorted(ODD_KEYS + DOTTED_KEYS, key=lambda key: key.encode())
for key in keys:
    put(key, key.encode(), Metadata={"note": "n  n"})
    # The SDK checks the stored checksum.
    equal(get(key), key.encode())
equal(names(PaginationConfig={"PageSize": 3}), (keys, []))
equal(names("list_objects", PaginationConfig={"PageSize": 4}), (keys, []))
prefixes = sorted({k.split("/")[0] + "/" for k in keys if "/" in k}, key=lambda key: key.encode())
for operation in ("list_objects", "list_objects_v2"):
    got = names(operation, Delimiter="/", PaginationConfig={"PageSize": 2})
    equal(got, ([k for k in keys if "/" not in k], prefixes))
equal(names(StartAfter="dir/", Prefix="d"), (["dir/inner"], []))
equal(s3.list_objects_v2(Bucket=BUCKET, MaxKeys=5000)["MaxKeys"], 1000)
# XML has no way to write a control character, so the SDK cannot delete such keys in bulk.
plain = [key for key in keys if key.isprintable()]
deleted = s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": k} for k in plain]})
equal(sorted(o["Key"] for o in deleted["Deleted"]), sorted(plain))
for key in keys:
    s3.delete_object(Bucket=BUCKET, Key=key)
equal(names(), ([], []))

# Metadata, ranges, conditions, checksums.
first = put("data", DATA, ContentType="text/x", Metadata={"who": "me"})
equal(first["ETag"], '"' + hashlib.md5(DATA).hexdigest() + '"')
head = s3.head_object(Bucket=BUCKET, Key="data")
equal((head["ContentLength"], head["ContentType"], head["Metadata"]), (len(DATA), "text/x", {"who": "me"}))
equal(get("data"), DATA)
part = s3.get_object(Bucket=BUCKET, Key="data", Range="bytes=10-19")
equal((part["Body"].read(), part["ContentRange"]), (DATA[10:20], f"bytes 10-19/{len(DATA)}"))
equal(get("data", Range=f"bytes=5-{len(DATA) + 5}"), DATA[5:])
equal(get("data", Range="bytes=-7"), DATA[-7:])
refused(lambda: get("data", Range=f"bytes={len(DATA)}-"), 416, "InvalidRange", code)
refused(lambda: get("data", IfMatch='"0"'), 412, "PreconditionFailed", code)
refused(lambda: get("data", IfNoneMatch=first["ETag"]), 304, "304", code)
refused(lambda: get("none"), 404, "NoSuchKey", code)
refused(lambda: s3.head_object(Bucket=BUCKET, Key="none"), 404, "404", code)
put("new", SMALL, IfNoneMatch="*")
refused(lambda: put("new", SMALL, IfNoneMatch="*"), 412, "PreconditionFailed", code)
refused(lambda: put("none", SMALL, IfMatch='"0"'), 404, "NoSuchKey", code)
refused(lambda: put("md5", SMALL, ContentMD5="AAAAAAAAAAAAAAAAAAAAAA=="), 400, "BadDigest", code)
refused(lambda: put("crc", SMALL, ChecksumCRC32="AAAAAA=="), 400, "BadDigest", code)
sha = base64.b64encode(hashlib.sha256(SMALL).digest()).decode()
equal(put("sha", SMALL, ChecksumSHA256=sha)["ChecksumSHA256"], sha)
equal(s3.get_object(Bucket=BUCKET, Key="sha", ChecksumMode="ENABLED")["ChecksumSHA256"], sha)
refused(lambda: put("k" * 1025, SMALL), 400, "KeyTooLongError", code)
put("k" * 1024, SMALL)
s3.copy_object(Bucket=BUCKET, Key="copy", CopySource={"Bucket": BUCKET, "Key": "data"})
equal(get("copy"), DATA)
refused(lambda: s3.copy_object(Bucket=BUCKET, Key="copy", CopySource=f"{BUCKET}/none"), 404, "NoSuchKey", code)

# Multipart: by hand with the rules, and by the SDK's own transfers.
whole = (DATA * 12)[: 2 * PART + 1000]
upload = s3.create_multipart_upload(Bucket=BUCKET, Key="big")["UploadId"]
big = {"Bucket": BUCKET, "Key": "big", "UploadId": upload}


def send(number, body):
    sent = s3.upload_part(PartNumber=number, Body=body, **big)
    return {"PartNumber": number, "ETag": sent["ETag"], "ChecksumCRC32": sent["ChecksumCRC32"]}


parts = [send(3, whole[2 * PART :]), send(1, whole[:PART]), send(2, whole[PART : 2 * PART])]
listed = s3.list_parts(MaxParts=2, **big)
equal(([p["PartNumber"] for p in listed["Parts"]], listed["IsTruncated"]), ([1, 2], True))
equal([u["UploadId"] for u in s3.list_multipart_uploads(Bucket=BUCKET)["Uploads"]], [upload])


def complete(parts):
    return s3.complete_multipart_upload(MultipartUpload={"Parts": parts}, **big)


refused(lambda: complete(parts), 400, "InvalidPartOrder", code)
parts.sort(key=lambda part: part["PartNumber"])
refused(lambda: complete([parts[0], dict(parts[1], PartNumber=9)]), 400, "InvalidPart", code)
refused(lambda: complete([parts[0], dict(parts[1], ChecksumCRC32="AAAAAA==")]), 400, "InvalidPart", code)
equal(get("data"), DATA)
md5s = b"".join(hashlib.md5(whole[at : at + PART]).digest() for at in (0, PART, 2 * PART))
equal(complete(parts)["ETag"], '"' + hashlib.md5(md5s).hexdigest() + '-3"')
equal(get("big"), whole)
refused(lambda: complete(parts), 404, "NoSuchUpload", code)
upload = s3.create_multipart_upload(Bucket=BUCKET, Key="small")["UploadId"]
big = {"Bucket": BUCKET, "Key": "small", "UploadId": upload}
tiny = [send(1, SMALL), send(2, SMALL)]
refused(lambda: complete(tiny), 400, "EntityTooSmall", code)
refused(lambda: send(10_001, SMALL), 400, "InvalidArgument", code)
s3.abort_multipart_upload(**big)
refused(lambda: send(1, SMALL), 404, "NoSuchUpload", code)
upload = s3.create_multipart_upload(Bucket=BUCKET, Key="pieces")["UploadId"]
big = {"Bucket": BUCKET, "Key": "pieces", "UploadId": upload}
source = {"Bucket": BUCKET, "Key": "big"}
copied = s3.upload_part_copy(PartNumber=1, CopySource=source, CopySourceRange=f"bytes=100-{PART + 99}", **big)
last = s3.upload_part(PartNumber=2, Body=SMALL, **big)
refused(
    lambda: s3.upload_part_copy(PartNumber=3, CopySource=source, CopySourceRange=f"bytes=0-{len(whole)}", **big),
    400, "InvalidArgument", code,
)
complete([{"PartNumber": 1, "ETag": copied["CopyPartResult"]["ETag"]}, {"PartNumber": 2, "ETag": last["ETag"]}])
equal(get("pieces"), whole[100 : PART + 100] + SMALL)
transfer = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART)
s3.upload_fileobj(io.BytesIO(whole), BUCKET, "transfer", Config=transfer)
sink = io.BytesIO()
s3.download_fileobj(BUCKET, "transfer", sink, Config=transfer)
equal(sink.getvalue(), whole)

# Where the bucket is.
equal(s3.get_bucket_location(Bucket=BUCKET)["LocationConstraint"], REGION)
equal(s3.head_bucket(Bucket=BUCKET)["ResponseMetadata"]["HTTPStatusCode"], 200)


# Who asks.
def read_as(key, **options):
    return client(key, **options).get_object(Bucket=BUCKET, Key="new")["Body"].read()


equal(read_as(TEMPORARY), SMALL)
refused(lambda: read_as(EXPIRED), 400, "ExpiredToken", code)
refused(lambda: read_as(dict(TEMPORARY, token="other")), 400, "InvalidToken", code)
refused(lambda: read_as(dict(KEY, secret="wrong")), 403, "SignatureDoesNotMatch", code)
refused(lambda: read_as(dict(KEY, id="nobody")), 403, "InvalidAccessKeyId", code)
# The SDK learns the right region from the refusal and asks again there.
equal(read_as(KEY, region="eu-west-9"), SMALL)
refused(lambda: s3.get_object(Bucket="no-such-bucket", Key="k"), 404, "NoSuchBucket", code)

finish()
