"""An SMTP server with TLS and a user, on a port of its own: smtp_tls.py starttls|tls CERTIFICATE KEY DIRECTORY.

Prints its port. The user is podsec, its password is `secret word`; messages become files in the directory.
A stand-in for a mail provider; TLS is OpenSSL's, by Python.
"""
import base64, pathlib, socket, ssl, sys

mode, certificate, key, directory = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)


def serve(connection):
    encrypted = mode == "tls"
    if encrypted:
        connection = context.wrap_socket(connection, server_side=True)
    lines = connection.makefile("rb")
    user, say = None, lambda text: connection.sendall(text.encode() + b"\r\n")
    say("220 test ESMTP")
    while line := lines.readline():
        verb = line.decode().strip()
        if verb.startswith("EHLO"):
            say("250-test")
            say("250 AUTH PLAIN" if encrypted else "250 STARTTLS")
        elif verb == "STARTTLS":
            say("220 go on")
            connection = context.wrap_socket(connection, server_side=True)
            lines, encrypted = connection.makefile("rb"), True
        elif verb.startswith("AUTH PLAIN "):
            user = base64.b64decode(verb.split()[2]).split(b"\0")[1:] == [b"podsec", b"secret word"]
            say("235 welcome" if user else "535 5.7.8 wrong password")
        elif verb == "DATA":
            say("354 go on")
            message = b""
            while (line := lines.readline()) != b".\r\n":
                message += line
            (pathlib.Path(directory) / "taken").write_bytes(message)
            say("250 taken")
        elif verb == "QUIT":
            return say("221 bye")
        else:
            say("250 ok" if user else "530 5.7.0 authenticate first")


while True:
    connection, _ = listener.accept()
    try:
        serve(connection)
    except (OSError, ssl.SSLError) as error:
        print(error, file=sys.stderr)
