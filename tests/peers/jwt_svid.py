#!/usr/bin/env python3
"""JWT-SVIDs with py-spiffe, and with a stock library of JSON Web Tokens that knows no SPIFFE.

    jwt_svid.py source --socket unix:///run/agent.sock --audience a
    jwt_svid.py oidc --ca web.pem --issuer https://127.0.0.1:8443 --audience a < tokens

`source` prints one JSON line: the token's "spiffe_id" and "audience", "source_ms", the time until the source was there, and
"other", what became of it for another audience. `oidc` finds the keys by the issuer's discovery document over HTTPS, as PyJWT's users do, and
prints a line for each token of standard input: {"subject", "issuer"} or {"refused"}. Ends with 0, or with 1 and {"error"}.
"""

import argparse
import json
import ssl
import sys
import time
import urllib.request


def report(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


def source(socket: str, audience: str) -> None:
    from spiffe import JwtSource, JwtSvid, WorkloadApiClient

    # A plain fetch shows a refusal; the source would go on trying.
    with WorkloadApiClient(socket) as client:
        client.fetch_jwt_svid(audience={audience}, timeout=10)
    began = time.monotonic()
    with JwtSource(socket_path=socket, timeout_in_seconds=30) as held:
        took = int((time.monotonic() - began) * 1000)
        svid = held.fetch_svid(audience={audience})
        bundle = held.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
        own = JwtSvid.parse_and_validate(token=svid.token, jwt_bundle=bundle, audience={audience})
        try:
            JwtSvid.parse_and_validate(token=svid.token, jwt_bundle=bundle, audience={"somebody-else"})
            other = "believed"
        except Exception as error:
            other = type(error).__name__
        report({
            "spiffe_id": str(own.spiffe_id),
            "audience": sorted(own.audience),
            "other": other,
            "source_ms": took,
        })


def oidc(ca: str, issuer: str, audience: str) -> None:
    import jwt

    context = ssl.create_default_context(cafile=ca)
    address = issuer + "/.well-known/openid-configuration"
    with urllib.request.urlopen(address, context=context, timeout=10) as answer:
        described = json.load(answer)
        cache = answer.headers["Cache-Control"]
    assert described["issuer"] == issuer, described
    keys = jwt.PyJWKClient(described["jwks_uri"], ssl_context=context)
    for token in sys.stdin:
        try:
            claims = jwt.decode(
                token.strip(),
                keys.get_signing_key_from_jwt(token.strip()),
                algorithms=described["id_token_signing_alg_values_supported"],
                audience=audience,
                issuer=issuer,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            report({"refused": type(error).__name__})
            continue
        report({"subject": claims["sub"], "issuer": claims["iss"], "cache": cache})


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=["source", "oidc"])
    arguments.add_argument("--socket", help="the Workload API, unix:///path")
    arguments.add_argument("--ca", help="the authority of the issuer's web certificate, PEM")
    arguments.add_argument("--issuer", help="the issuer's address")
    arguments.add_argument("--audience", required=True)
    given = arguments.parse_args()
    try:
        if given.what == "source":
            source(given.socket, given.audience)
        else:
            oidc(given.ca, given.issuer, given.audience)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not hasattr(cause, "code"):
            cause = cause.__cause__
        report({"error": type(error).__name__, "detail": str(error), "code": str(getattr(cause, "code", lambda: None)())})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
