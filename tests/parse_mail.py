"""Reads a message with Python's email package, and prints what a reader sees as JSON."""
import email, email.policy, gzip, json, sys

mail = email.message_from_binary_file(sys.stdin.buffer, policy=email.policy.default)


def content(part):
    data = part.get_payload(decode=True)
    if part.get_content_type() == "application/gzip":
        data = gzip.decompress(data)
    return data.decode().replace("\r\n", "\n")


parts = [part for part in mail.walk() if not part.is_multipart()]
json.dump({
    "headers": [[name, str(value)] for name, value in mail.items()],
    "defects": [repr(defect) for part in mail.walk() for defect in part.defects],
    "parts": [[part.get_content_type(), part.get_filename(), content(part)] for part in parts],
}, sys.stdout)
