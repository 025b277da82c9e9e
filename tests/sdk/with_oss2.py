"""Alibaba's older Python SDK against the double. The argument is the signature version: v1 or v4."""

import base64
import hashlib
import sys
import tempfile

import oss2
from oss2.models import BatchDeleteObjectsResult, PartInfo  # noqa: F401 - the import proves the version

from common import (
    BUCKET, DATA, DOTTED_KEYS, ENDPOINT, EXPIRED, KEY, ODD_KEYS, REGION, TEMPORARY, equal, finish, refused,
)

version = sys.argv[1]
SMALL = b"some bytes"


def bucket(key=KEY, region=REGION, name=BUCKET):
    if key.get("token"):
        auth = oss2.StsAuth(key["id"], key["secret"], key["token"], auth_version=version)
    elif version == "v4":
        auth = oss2.AuthV4(key["id"], key["secret"])
    else:
        auth = oss2.Auth(key["id"], key["secret"])
    return oss2.Bucket(auth, ENDPOINT, name, region=region, connect_timeout=10)


def code(error):
    return error.status, error.code


b = bucket()
keys = sorted(ODD_KEYS + DOTTED_KEYS, key=lambda key: key.encode())

# Every key, put and read back; the SDK compares its own CRC with the one that is sent.
for key in keys:
    b.put_object(key, key.encode(), headers={"x-oss-meta-note": "n"})
    equal(b.get_object(key).read(), key.encode())
equal([o.key for o in oss2.ObjectIteratorV2(b, max_keys=3)], keys)
equal([o.key for o in oss2.ObjectIterator(b, max_keys=4)], keys)
top = [(o.key, o.is_prefix()) for o in oss2.ObjectIteratorV2(b, delimiter="/", max_keys=2)]
flat = sorted({k.split("/")[0] + "/" if "/" in k else k for k in keys}, key=lambda key: key.encode())
equal(sorted((k for k, _ in top), key=lambda key: key.encode()), flat)
equal({k for k, is_prefix in top if is_prefix}, {k for k in flat if k.endswith("/")})
page = b.list_objects_v2(prefix="dir/", max_keys=1)
equal(([o.key for o in page.object_list], page.is_truncated), (["dir/"], True))
refused(lambda: b.list_objects_v2(max_keys=1001), 400, "InvalidArgument", code)
deleted = b.batch_delete_objects(keys)
equal(sorted(deleted.deleted_keys), sorted(keys))
equal(list(oss2.ObjectIteratorV2(b)), [])

# Metadata, ranges, conditions.
put = b.put_object("data", DATA, headers={"Content-Type": "text/x", "x-oss-meta-Who": "me"})
equal(put.etag, hashlib.md5(DATA).hexdigest().upper())
head = b.head_object("data")
equal((head.content_length, head.content_type, head.headers["x-oss-meta-who"]), (len(DATA), "text/x", "me"))
equal(head.object_type, "Normal")
equal(head.server_crc, put.crc)
part = b.get_object("data", byte_range=(1000, 1999))
equal((part.status, part.read(), part.content_range), (206, DATA[1000:2000], f"bytes 1000-1999/{len(DATA)}"))
equal(b.get_object("data", byte_range=(None, 5)).read(), DATA[-5:])
equal(b.get_object("data", byte_range=(len(DATA) - 5, None)).read(), DATA[-5:])
outside = b.get_object("data", byte_range=(len(DATA), len(DATA) + 9))
equal((outside.status, outside.read() == DATA), (200, True))
standard = {"x-oss-range-behavior": "standard"}
equal(b.get_object("data", byte_range=(len(DATA) - 5, len(DATA) + 5), headers=standard).read(), DATA[-5:])
refused(lambda: b.get_object("data", byte_range=(len(DATA), len(DATA) + 9), headers=standard), 416, "InvalidRange", code)
equal(b.get_object("data", headers={"If-Match": f'"{put.etag}"'}).read(), DATA)
refused(lambda: b.get_object("data", headers={"If-Match": '"0"'}), 412, "PreconditionFailed", code)
refused(lambda: b.get_object("data", headers={"If-None-Match": f'"{put.etag}"'}), 304, "", code)
refused(lambda: b.get_object("none"), 404, "NoSuchKey", code)
# A HEAD has no body: the error travels in a header.
refused(lambda: b.head_object("none"), 404, "NoSuchKey" if version else "", lambda e: (e.status, e.code))
equal(b.object_exists("none"), False)
forbid = {"x-oss-forbid-overwrite": "true"}
b.put_object("new", SMALL, headers=forbid)
refused(lambda: b.put_object("new", SMALL, headers=forbid), 409, "FileAlreadyExists", code)
refused(lambda: b.put_object("new", SMALL, headers={"If-None-Match": "*"}), 501, "NotImplemented", code)
wrong_md5 = base64.b64encode(hashlib.md5(b"other").digest()).decode()
refused(lambda: b.put_object("md5", SMALL, headers={"Content-MD5": wrong_md5}), 400, "InvalidDigest", code)
equal(b.object_exists("md5"), False)
refused(lambda: b.put_object("k" * 1024, SMALL), 400, "InvalidObjectName", code)
b.put_object("k" * 1023, SMALL)

# Copies.
b.put_object("odd +%/\u6570", SMALL)
b.copy_object(BUCKET, "odd +%/\u6570", "copy")
equal(b.get_object("copy").read(), SMALL)
refused(lambda: b.copy_object(BUCKET, "none", "copy"), 404, "NoSuchKey", code)
b.delete_object("copy")
b.delete_object("copy")
equal(b.object_exists("copy"), False)

# Multipart: parts in any order, a copied part, the listing of parts, the rules.
upload = b.init_multipart_upload("big").upload_id
size = 400_000
second = b.upload_part("big", upload, 2, DATA[size:])
first = b.upload_part("big", upload, 1, DATA[:size])
listed = b.list_parts("big", upload, max_parts=1)
equal(([p.part_number for p in listed.parts], listed.is_truncated, listed.next_marker), ([1], True, "1"))
equal([u.key for u in b.list_multipart_uploads().upload_list], ["big"])
equal([(u.key, u.upload_id) for u in oss2.ObjectUploadIterator(b, "big")], [("big", upload)])
parts = [PartInfo(1, first.etag, part_crc=first.crc, size=size), PartInfo(2, second.etag, part_crc=second.crc, size=len(DATA) - size)]
refused(lambda: b.complete_multipart_upload("big", upload, parts[:1] + [PartInfo(3, first.etag)]), 400, "InvalidPart", code)
refused(lambda: b.complete_multipart_upload("big", upload, [PartInfo(1, second.etag), parts[1]]), 400, "InvalidPart", code)
equal(b.object_exists("big"), False)
# The SDK combines the CRCs of the parts and compares.
done = b.complete_multipart_upload("big", upload, parts)
md5s = hashlib.md5(DATA[:size]).digest() + hashlib.md5(DATA[size:]).digest()
equal(done.etag, hashlib.md5(md5s).hexdigest().upper() + "-2")
equal(b.get_object("big").read(), DATA)
equal(b.head_object("big").object_type, "Multipart")
refused(lambda: b.complete_multipart_upload("big", upload, parts), 404, "NoSuchUpload", code)
upload = b.init_multipart_upload("small").upload_id
tiny = [PartInfo(n, b.upload_part("small", upload, n, SMALL).etag) for n in (1, 2)]
refused(lambda: b.complete_multipart_upload("small", upload, tiny), 400, "EntityTooSmall", code)
refused(lambda: b.upload_part("small", upload, 10_001, SMALL), 400, "InvalidArgument", code)
b.abort_multipart_upload("small", upload)
refused(lambda: b.upload_part("small", upload, 1, SMALL), 404, "NoSuchUpload", code)
upload = b.init_multipart_upload("copied").upload_id
copied = b.upload_part_copy(BUCKET, "data", (0, 199_999), "copied", upload, 1)
last = b.upload_part("copied", upload, 2, SMALL)
b.complete_multipart_upload("copied", upload, [PartInfo(1, copied.etag), PartInfo(2, last.etag)])
equal(b.get_object("copied").read(), DATA[:200_000] + SMALL)
# Its record is in the home directory otherwise, which several runs at once share.
with tempfile.TemporaryDirectory() as records:
    store = oss2.ResumableStore(root=records)
    oss2.resumable_upload(b, "resumable", __file__, multipart_threshold=1, store=store)
equal(b.get_object("resumable").read(), open(__file__, "rb").read())

# Append.
appended = b.append_object("log", 0, b"one", init_crc=0)
equal(appended.next_position, 3)
appended = b.append_object("log", 3, b"two", init_crc=appended.crc)
equal((appended.next_position, b.get_object("log").read()), (6, b"onetwo"))
error = refused(lambda: b.append_object("log", 3, b"x"), 409, "PositionNotEqualToLength", code)
equal(error.headers["x-oss-next-append-position"], "6")
refused(lambda: b.append_object("data", len(DATA), b"x"), 409, "ObjectNotAppendable", code)
equal(b.head_object("log").object_type, "Appendable")
equal(b.get_bucket_location().location, f"oss-{REGION}")

# Who asks.
equal(bucket(TEMPORARY).get_object("log").read(), b"onetwo")
refused(lambda: bucket(EXPIRED).get_object("log"), 403, "SecurityTokenExpired", code)
refused(lambda: bucket(dict(TEMPORARY, token="other")).get_object("log"), 403, "InvalidSecurityToken", code)
refused(lambda: bucket(dict(TEMPORARY, token=None)).get_object("log"), 403, "InvalidAccessKeyId", code)
refused(lambda: bucket(dict(KEY, secret="wrong")).get_object("log"), 403, "SignatureDoesNotMatch", code)
refused(lambda: bucket(dict(KEY, id="nobody")).get_object("log"), 403, "InvalidAccessKeyId", code)
refused(lambda: bucket(name="no-such-bucket").get_object("log"), 404, "NoSuchBucket", code)
if version == "v4":
    error = refused(lambda: bucket(region="cn-other").get_object("log"), 400, "InvalidArgument", code)
    equal(error.details["EC"], "0002-00000226")
else:
    url = b.sign_url("GET", "log", 60)
    equal(oss2.Session().do_request(oss2.http.Request("GET", url), timeout=10).read(), b"onetwo")

finish()
