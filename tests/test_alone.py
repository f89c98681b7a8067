"""Without a network: a served chat works, and nothing is tried but loopback."""

from alone import LOOPBACK, needs_namespace, run_alone, turned_to

CHAT = """
import contextlib, subprocess, sys, time, httpx
port = "18733"  # nobody else is in this namespace
server = subprocess.Popen([sys.executable, "-m", "nightschool", "serve", "--port", port])
try:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
        while True:
            assert server.poll() is None, "the server ended"
            with contextlib.suppress(httpx.TransportError):
                if client.get("/health").status_code == 200:
                    break
            time.sleep(0.1)
        asked = {"model": "ember", "messages": [{"role": "user", "content": "Hello!"}], "temperature": 0}
        print(client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"])
        assert "<main" in client.get("/").text
finally:
    server.terminate()
    server.wait(30)
"""
OUTWARD = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"  # an address of no one (RFC 5737)


@needs_namespace
def test_a_served_chat_needs_no_network_and_turns_to_none(tmp_path):
    done = run_alone(["-c", CHAT], tmp_path, NIGHTSCHOOL_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Hello!")
    assert "127.0.0.1" in turned_to(tmp_path) and turned_to(tmp_path) <= LOOPBACK


@needs_namespace
def test_what_would_leave_fails_and_is_noted(tmp_path):
    done = run_alone(["-c", OUTWARD], tmp_path)
    assert "Network is unreachable" in done.stderr
    assert turned_to(tmp_path) - LOOPBACK == {"192.0.2.1"}
