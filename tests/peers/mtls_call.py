#!/usr/bin/env python3
"""Makes one HTTPS request over mutual TLS 1.3 with an SVID and a bundle that py-spiffe fetched, and prints the answer.

    mtls_call.py --socket unix:///run/agent.sock --url https://127.0.0.1:8443/path --expect spiffe://td/service

Prints {"status", "body", "peer", "tls"}. OpenSSL verifies the peer's chain against the bundle of the peer's own trust
domain; the peer's one URI name must be `--expect`. Ends with 0 when there was an answer, whatever its status, with 3
when the agent refuses an SVID, with 1 and {"error", "detail"} on anything else.
"""

import argparse
import http.client
import ssl
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fetch_svid import refusal, report
from spiffe import SpiffeId, WorkloadApiClient


def tls_context(socket: str, expect: SpiffeId, seconds: float) -> ssl.SSLContext:
    with WorkloadApiClient(socket, default_timeout=seconds) as client:
        held = client.fetch_x509_context()
    bundle = held.x509_bundle_set.get_bundle_for_trust_domain(expect.trust_domain)
    if bundle is None:
        raise LookupError(f"no bundle for `{expect.trust_domain}`")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # a SPIFFE peer is known by its URI name, compared below
    context.set_alpn_protocols(["http/1.1"])
    context.load_verify_locations(cadata="".join(
        authority.public_bytes(Encoding.PEM).decode() for authority in bundle.x509_authorities
    ))
    # Python's TLS reads a key from a file only.
    with tempfile.TemporaryDirectory() as directory:
        chain, key = Path(directory) / "chain.pem", Path(directory) / "key.pem"
        held.default_svid.save(chain, key, Encoding.PEM)
        context.load_cert_chain(chain, key)
    return context


def peer_name(connection: http.client.HTTPSConnection) -> str:
    leaf = x509.load_der_x509_certificate(connection.sock.getpeercert(binary_form=True))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    [name] = names.get_values_for_type(x509.UniformResourceIdentifier)
    return name


def call(socket: str, url: str, expect: str, method: str, seconds: float) -> None:
    where = urlsplit(url)
    context = tls_context(socket, SpiffeId(expect), seconds)
    connection = http.client.HTTPSConnection(where.hostname, where.port, context=context, timeout=seconds)
    try:
        connection.connect()
        peer, version = peer_name(connection), connection.sock.version()
        if peer != expect:
            raise ssl.SSLCertVerificationError(f"the peer is `{peer}`, not `{expect}`")
        path = (where.path or "/") + (f"?{where.query}" if where.query else "")
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read().decode(errors="replace")
        report({"status": answer.status, "body": body, "peer": peer, "tls": version})
    finally:
        connection.close()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--socket", required=True, help="the Workload API, unix:///path")
    arguments.add_argument("--url", required=True, help="https://host:port/path")
    arguments.add_argument("--expect", required=True, help="the SPIFFE ID the peer must prove")
    arguments.add_argument("--method", default="GET")
    arguments.add_argument("--seconds", type=float, default=10.0, help="limit of each wait")
    given = arguments.parse_args()
    try:
        call(given.socket, given.url, given.expect, given.method, given.seconds)
        return 0
    except Exception as error:
        code, line = refusal(error)
        report(line)
        return code


if __name__ == "__main__":
    sys.exit(main())
