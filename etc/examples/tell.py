"""A hook that tells people what happened to a service, with the last lines of its log.

Usage: tell.py URL                            post it as JSON, the text under "text" as chats like it
       tell.py --mail ADDRESS [HOST[:PORT]]   mail it, by the mail server on this host or that one

In services.toml:

    [[hook]]
    on  = ["gave_up", "became_unhealthy"]
    cmd = ["python3", "etc/examples/tell.py", "--mail", "root@localhost"]

The registry gives the event on standard input, {"event": {...}, "host": "..."}, and in CIRCLEOSD_SOCKET where it can
be asked for more. It waits for the hook as long as the hook's `timeout` says, and tries nothing twice.
"""

import json
import os
import smtplib
import socket
import sys
import urllib.parse
import urllib.request
from email.message import EmailMessage

REGISTRY = os.environ.get("CIRCLEOSD_SOCKET", "/tmp/service-registry.sock")
LINES = 20
LINE_MAX = 500
EACH_S = 4.0  # for the registry, then for the other end: together less than a hook's usual timeout


def last_lines(service: str) -> list[str]:
    """The service's last lines of output; why there are none, where the registry does not give them."""
    request = json.dumps({"action": "logs", "service": service, "lines": LINES}) + "\n"
    try:
        with socket.socket(socket.AF_UNIX) as registry:
            registry.settimeout(EACH_S)
            registry.connect(REGISTRY)
            registry.sendall(request.encode())
            answer = json.loads(registry.makefile().readline() or "{}")
    except OSError as error:
        return [f"(no log: no registry at {REGISTRY}: {error})"]
    if not answer.get("ok"):
        return [f"(no log: {answer.get('error', {}).get('message', 'the registry is gone')})"]
    return [line[:LINE_MAX] for line in answer["data"]]


def post(url: str, told: dict, subject: str, lines: list[str]) -> None:
    """Send it to a web address; what is no 2xx answer is an error."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        sys.exit("the address to post to wants to begin with http:// or https://")
    body = {"text": "\n".join([subject, *lines]), "lines": lines, **told}
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=EACH_S):
        pass


def mail(address: str, server: str, told: dict, subject: str, lines: list[str]) -> None:
    """Send it as a mail; a server that does not take it is an error."""
    message = EmailMessage()
    message["From"] = f"circleosd@{told['host']}"
    message["To"] = address
    message["Subject"] = subject
    text = "\n".join([*lines, "", json.dumps(told["event"], indent=2), ""])
    message.set_content(text, cte="quoted-printable")  # every server takes that
    host, _, port = server.partition(":")
    with smtplib.SMTP(host, int(port or 25), told["host"], timeout=EACH_S) as smtp:
        smtp.send_message(message)


def main(arguments: list[str]) -> None:
    told = json.load(sys.stdin)
    event = told["event"]
    reason = f" ({event['reason']})" if event["reason"] else ""
    subject = f"{event['service'] or 'registry'} on {told['host']}: {event['type']}{reason}"
    lines = last_lines(event["service"]) if event["service"] else []
    try:
        match arguments:
            case ["--mail", address, *server] if len(server) <= 1:
                mail(address, *(server or ["localhost"]), told, subject, lines)
            case [url] if not url.startswith("-"):
                post(url, told, subject, lines)
            case _:
                sys.exit("usage: tell.py URL | tell.py --mail ADDRESS [HOST[:PORT]]")
    except (OSError, smtplib.SMTPException) as error:
        sys.exit(f"nobody was told: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
