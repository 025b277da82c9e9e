"""Alibaba's current Python SDK against the double. It signs with V4 only."""

import io

import alibabacloud_oss_v2 as oss

from common import BUCKET, DATA, ENDPOINT, EXPIRED, KEY, ODD_KEYS, REGION, TEMPORARY, equal, finish, refused

SMALL = b"some bytes"


def client(key=KEY, region=REGION):
    config = oss.config.load_default()
    config.credentials_provider = oss.credentials.StaticCredentialsProvider(key["id"], key["secret"], key.get("token"))
    config.region = region
    config.endpoint = ENDPOINT
    config.use_path_style = True
    config.retry_max_attempts = 1
    # Headers beyond the obligatory ones are signed, too.
    config.additional_headers = ["host", "content-length"]
    return oss.Client(config)


def code(error):
    service = error.unwrap() if isinstance(error, oss.exceptions.OperationError) else error
    return getattr(service, "status_code", None), getattr(service, "code", repr(service))


c = client()


def put(key, body, **options):
    return c.put_object(oss.PutObjectRequest(bucket=BUCKET, key=key, body=body, **options))


def get(key, **options):
    return c.get_object(oss.GetObjectRequest(bucket=BUCKET, key=key, **options)).body.content


def names(**options):
    pages = c.list_objects_v2_paginator().iter_page(oss.ListObjectsV2Request(bucket=BUCKET, **options))
    found = [page for page in pages]
    return [o.key for page in found for o in page.contents or []], [
        p.prefix for page in found for p in page.common_prefixes or []
    ]


keys = sorted(ODD_KEYS, key=lambda key: key.encode())
for key in keys:
    # The SDK compares its own CRC with the one that is sent.
    put(key, key.encode(), metadata={"note": "n"})
    equal(get(key), key.encode())
equal(names(max_keys=3), (keys, []))
pages = c.list_objects_paginator().iter_page(oss.ListObjectsRequest(bucket=BUCKET, max_keys=4, encoding_type="url"))
equal([o.key for page in pages for o in page.contents or []], keys)
flat, prefixes = names(delimiter="/", max_keys=2)
equal(flat, [k for k in keys if "/" not in k])
equal(prefixes, sorted({k.split("/")[0] + "/" for k in keys if "/" in k}, key=lambda key: key.encode()))
equal(names(start_after="dir/", prefix="d"), (["dir/inner"], []))
# Its bulk delete writes control characters into XML as they are, which no XML holds: those go one by one.
plain = [k for k in keys if k.isprintable()]
deleted = c.delete_multiple_objects(
    oss.DeleteMultipleObjectsRequest(bucket=BUCKET, encoding_type="url", objects=[oss.DeleteObject(key=k) for k in plain])
)
equal(sorted(o.key for o in deleted.deleted_objects), sorted(plain))
for key in keys:
    c.delete_object(oss.DeleteObjectRequest(bucket=BUCKET, key=key))
equal(names(), ([], []))

first = put("data", DATA)
head = c.head_object(oss.HeadObjectRequest(bucket=BUCKET, key="data"))
equal((head.content_length, head.object_type, head.hash_crc64), (len(DATA), "Normal", first.hash_crc64))
equal(get("data"), DATA)
part = c.get_object(oss.GetObjectRequest(bucket=BUCKET, key="data", range_header="bytes=10-19", range_behavior="standard"))
equal((part.status_code, part.body.content, part.content_range), (206, DATA[10:20], f"bytes 10-19/{len(DATA)}"))
refused(lambda: get("data", range_header=f"bytes={len(DATA)}-", range_behavior="standard"), 416, "InvalidRange", code)
refused(lambda: get("data", if_match='"0"'), 412, "PreconditionFailed", code)
refused(lambda: get("none"), 404, "NoSuchKey", code)
refused(lambda: c.head_object(oss.HeadObjectRequest(bucket=BUCKET, key="none")), 404, "NoSuchKey", code)
refused(lambda: put("data", SMALL, forbid_overwrite=True), 409, "FileAlreadyExists", code)
refused(lambda: put("md5", SMALL, content_md5="AAAAAAAAAAAAAAAAAAAAAA=="), 400, "InvalidDigest", code)
equal(c.is_object_exist(BUCKET, "md5"), False)
copied = c.copy_object(oss.CopyObjectRequest(bucket=BUCKET, key="copy +\u6570", source_key="data"))
equal((get("copy +\u6570"), copied.etag), (DATA, first.etag))

# Multipart: by hand, by the SDK's own uploader and downloader.
upload = c.initiate_multipart_upload(oss.InitiateMultipartUploadRequest(bucket=BUCKET, key="big")).upload_id
parts = []
for number, body in ((2, DATA[500_000:]), (1, DATA[:500_000])):
    sent = c.upload_part(oss.UploadPartRequest(bucket=BUCKET, key="big", upload_id=upload, part_number=number, body=body))
    parts.insert(0, oss.UploadPart(part_number=number, etag=sent.etag))
listed = c.list_parts(oss.ListPartsRequest(bucket=BUCKET, key="big", upload_id=upload))
equal([p.part_number for p in listed.parts], [1, 2])
listed = c.list_multipart_uploads(oss.ListMultipartUploadsRequest(bucket=BUCKET))
equal([u.upload_id for u in listed.uploads], [upload])


def complete(parts):
    return c.complete_multipart_upload(
        oss.CompleteMultipartUploadRequest(
            bucket=BUCKET,
            key="big",
            upload_id=upload,
            complete_multipart_upload=oss.CompleteMultipartUpload(parts=parts),
        )
    )


refused(lambda: complete([parts[0], oss.UploadPart(part_number=7, etag=parts[1].etag)]), 400, "InvalidPart", code)
done = complete(parts)
equal((get("big"), done.hash_crc64), (DATA, first.hash_crc64))
upload = c.initiate_multipart_upload(oss.InitiateMultipartUploadRequest(bucket=BUCKET, key="none")).upload_id
c.abort_multipart_upload(oss.AbortMultipartUploadRequest(bucket=BUCKET, key="none", upload_id=upload))
refused(
    lambda: c.list_parts(oss.ListPartsRequest(bucket=BUCKET, key="none", upload_id=upload)), 404, "NoSuchUpload", code
)
c.uploader(part_size=200_000, parallel_num=2).upload_from(oss.PutObjectRequest(bucket=BUCKET, key="up"), io.BytesIO(DATA))
equal(get("up"), DATA)
sink = io.BytesIO()
c.downloader(part_size=150_000, parallel_num=2).download_to(oss.GetObjectRequest(bucket=BUCKET, key="up"), sink)
equal(sink.getvalue(), DATA)


# Append.
def append(position, body, **options):
    return c.append_object(oss.AppendObjectRequest(bucket=BUCKET, key="log", position=position, body=body, **options))


one = append(0, b"one", init_hash_crc64=0)
two = append(3, b"two", init_hash_crc64=one.hash_crc64)
equal((two.next_position, get("log")), (6, b"onetwo"))
refused(lambda: append(5, b"x"), 409, "PositionNotEqualToLength", code)
equal(c.get_bucket_location(oss.GetBucketLocationRequest(bucket=BUCKET)).location, f"oss-{REGION}")


# Who asks.
def read_as(key, **options):
    return client(key, **options).get_object(oss.GetObjectRequest(bucket=BUCKET, key="log")).body.content


equal(read_as(TEMPORARY), b"onetwo")
refused(lambda: read_as(EXPIRED), 403, "SecurityTokenExpired", code)
refused(lambda: read_as(dict(KEY, secret="wrong")), 403, "SignatureDoesNotMatch", code)
refused(lambda: read_as(dict(KEY, id="nobody")), 403, "InvalidAccessKeyId", code)
refused(lambda: read_as(KEY, region="cn-other"), 400, "InvalidArgument", code)
no_bucket = oss.GetObjectRequest(bucket="no-such-bucket", key="k")
refused(lambda: c.get_object(no_bucket), 404, "NoSuchBucket", code)

finish()
