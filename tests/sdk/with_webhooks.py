"""Requests that were sent to a webhook, judged by the library of the Standard Webhooks project. The arguments are the secret and a
file with one request per line, as JSON."""

import json
import sys

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

secret = sys.argv[1]
with open(sys.argv[2], encoding="utf-8") as lines:
    requests = [json.loads(line) for line in lines]
assert requests, "nothing was sent"

webhook = Webhook(secret)
for request in requests:
    event = webhook.verify(request["body"], request["headers"])
    assert request["headers"]["webhook-id"] == event.get("EventId", event.get("id")), request
    try:
        webhook.verify(request["body"].replace("{", "{ ", 1), request["headers"])
    except WebhookVerificationError:
        pass
    else:
        sys.exit("a body that was changed passes")
print(len(requests))
