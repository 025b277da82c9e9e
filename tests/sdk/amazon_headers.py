"""Amazon's own SDK at Amazon's own endpoint, through a proxy: the test looks at what headers it sends for checksums."""

import json
import os

import boto3
from botocore.config import Config

task = json.loads(os.environ["AMAZON_HEADERS"])
s3 = boto3.client(
    "s3",
    endpoint_url=task["endpoint"],
    region_name="us-east-1",
    aws_access_key_id="test-key",
    aws_secret_access_key="test-secret",
    config=Config(retries={"total_max_attempts": 1}, proxies={"http": task["proxy"]}),
)
where = {"Bucket": "test-bucket", "Key": "sdk"}
parts = [bytes.fromhex(part) for part in task["parts"]]

s3.put_object(**where, Body=b"".join(parts), ChecksumCRC64NVME=task["whole"])
upload = s3.create_multipart_upload(**where, ChecksumAlgorithm="CRC64NVME", ChecksumType="FULL_OBJECT")
where["UploadId"] = upload["UploadId"]
done = []
for number, (part, crc) in enumerate(zip(parts, task["crcs"]), 1):
    answer = s3.upload_part(**where, PartNumber=number, Body=part, ChecksumCRC64NVME=crc)
    done.append({"PartNumber": number, "ETag": answer["ETag"]})
s3.complete_multipart_upload(
    **where,
    MultipartUpload={"Parts": done},
    ChecksumCRC64NVME=task["whole"],
    ChecksumType="FULL_OBJECT",
    MpuObjectSize=sum(map(len, parts)),
)
