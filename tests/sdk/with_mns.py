"""Requests that were sent to a topic, judged by Alibaba's SDK. The argument is a file with one request per line, as JSON."""

import base64
import hashlib
import json
import sys
from xml.etree import ElementTree

from mns.mns_client import MNSClient
from mns.mns_request import PublishMessageRequest
from mns.mns_xml_handler import TopicMessageEncoder

NAMESPACE = "{http://mns.aliyuncs.com/doc/v1/}"
KEY = ("test-key", "test-secret")

with open(sys.argv[1], encoding="utf-8") as lines:
    requests = [json.loads(line) for line in lines]
assert requests, "nothing was sent"

client = MNSClient("http://127.0.0.1:1", *KEY)
for request in requests:
    headers, body = request["headers"], request["body"].encode("utf-8")
    topic = request["path"].split("/")[2]
    message = ElementTree.fromstring(body).find(NAMESPACE + "MessageBody").text
    json.loads(message)

    # What the SDK would send for this message.
    sent = PublishMessageRequest(topic, message, message_group_id="")
    theirs = ElementTree.fromstring(TopicMessageEncoder.encode(sent))
    ours = ElementTree.fromstring(body)
    assert ElementTree.canonicalize(ElementTree.tostring(ours)) == ElementTree.canonicalize(ElementTree.tostring(theirs))
    assert (request["method"], request["path"]) == ("POST", "/topics/%s/messages" % topic)

    # And how it would sign it.
    digest = base64.b64encode(hashlib.md5(body).hexdigest().encode("utf-8")).decode("utf-8")
    assert headers["content-md5"] == digest, headers
    assert headers["x-mns-version"] == client.version, headers
    credentials = client.credentials_provider.get_credentials()
    expected = client.get_signature(request["method"], headers, request["path"], credentials)
    assert headers["authorization"] == expected, (headers["authorization"], expected)
    print(json.loads(message)["Event"])
