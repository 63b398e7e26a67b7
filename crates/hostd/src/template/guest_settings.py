# Run in the template's REPL, in a namespace of its own that has `certificates` and `variables`, before anyone has a
# copy: its guest is to reach the network as its host does. Its root disk's image knows nothing of it.

import os
import re

# Where distributions keep what all programs trust, Debian's first.
BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem")
# From here Debian's and Ubuntu's update-ca-certificates make the bundle anew.
ADDED = "/usr/local/share/ca-certificates"
# For what has certificates of its own, or looks elsewhere.
BUNDLE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS")
# The agent gives it to all code.
ENVIRONMENT = "/etc/environment"


def blocks(text):
    found = re.findall("-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", text, re.DOTALL)
    return ["".join(block.split()) for block in found]


def pem(block):
    lines = [block[start : start + 64] for start in range(0, len(block), 64)]
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])


def trust(certificates):
    present = [bundle for bundle in BUNDLES if os.path.exists(bundle)] or [BUNDLES[0]]
    for bundle in present:
        os.makedirs(os.path.dirname(bundle), exist_ok=True)
        with open(bundle, "a+", encoding="ascii", errors="replace") as file:
            file.seek(0)
            text = file.read()
            known = set(blocks(text))
            missing = [block for block in dict.fromkeys(blocks(certificates)) if block not in known]
            # Not every bundle ends with a line's end.
            file.write("\n" * (not text.endswith("\n")) + "".join(map(pem, missing)))
        if bundle == BUNDLES[0]:
            os.makedirs(ADDED, exist_ok=True)
            for number, block in enumerate(missing):
                with open(f"{ADDED}/host-{number}.crt", "w", encoding="ascii") as file:
                    file.write(pem(block))
    return present[0]


def quoted(value):
    # The agent takes one pair of quotes away, and blanks around a line.
    changes = value != value.strip() or value[:1] in ("'", '"') or value[-1:] in ("'", '"')
    return f'"{value}"' if changes else value


if certificates:
    bundle = trust(certificates)
    variables = {**dict.fromkeys(BUNDLE_VARIABLES, bundle), **variables}
for name in [name for name in variables if name.endswith("_proxy")]:
    # Programs differ in which they read.
    variables.setdefault(name.upper(), variables[name])
with open(ENVIRONMENT, "a+", encoding="utf-8", errors="replace") as file:
    file.seek(0)
    text = file.read()
    file.write("\n" * (text != "" and not text.endswith("\n")))
    file.writelines(f"{name}={quoted(value)}\n" for name, value in sorted(variables.items()))
os.environ.update(variables)
