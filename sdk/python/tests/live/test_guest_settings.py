"""What sandboxes know of their host's network; scripts/test-sdk names certificates for it."""

from pathlib import Path

import pytest

from podflare import Sandbox

from .vocabulary import bash, forked, python

pytestmark = pytest.mark.live

TEST_CERTIFICATE = (Path(__file__).parent / "test-ca.pem").read_text()

COUNT_TEST_CERTIFICATES = """
    import ssl
    subjects = [str(ca["subject"]) for ca in ssl.create_default_context().get_ca_certs()]
    print(sum("Podflare test CA" in subject for subject in subjects), len(subjects) > 50)
"""


def test_a_sandbox_trusts_the_certificates_of_its_host_and_its_own(sandbox: Sandbox) -> None:
    assert python(sandbox, COUNT_TEST_CERTIFICATES).split() == ["1", "True"]


def test_all_code_of_a_sandbox_is_told_where_the_certificates_are(sandbox: Sandbox) -> None:
    bundle = "/etc/ssl/certs/ca-certificates.crt"
    names = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS"]
    told = bash(sandbox, "printenv " + " ".join(names)).split()
    assert told == [bundle] * len(names)
    in_python = python(sandbox, f"import os; print(*[os.environ[name] for name in {names}])")
    assert in_python.split() == told


def test_a_repl_that_is_started_again_is_told_too(sandbox: Sandbox) -> None:
    sandbox.run_code("import os; os.kill(os.getpid(), 9)")
    assert python(sandbox, COUNT_TEST_CERTIFICATES).split() == ["1", "True"]


def test_the_certificates_are_where_the_bundle_is_made_anew_from(sandbox: Sandbox) -> None:
    with forked(sandbox, 1) as [child]:
        added = bash(child, "cat /usr/local/share/ca-certificates/host-*.crt")
    assert "".join(TEST_CERTIFICATE.split()) in "".join(added.split())


def test_nothing_of_it_is_left_in_the_repl(sandbox: Sandbox) -> None:
    left = python(sandbox, "print(*{'trust', 'certificates', 'variables', 'bundle'} & globals().keys())")
    assert left.split() == []
