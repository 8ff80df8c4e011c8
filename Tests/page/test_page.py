"""Uses the page of `microvm serve` as a person does, in headless Chromium.

    scripts/test-page [--screenshots DIRECTORY]

Each test begins with a server of its own. How long anything takes decides no test but for being reasonable; what was
measured is printed.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from playwright.sync_api import expect, sync_playwright

TOKEN = "a-token-for-the-page-0123456789"
MARKUP = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'


class Server:
    """A server with the guests `spin`, `hello` and `faults`."""

    def __init__(self, microvm, guests):
        self.directory = tempfile.TemporaryDirectory(prefix="microvm-page-")
        environment = dict(os.environ, MICROVM_TOKEN=TOKEN)
        self.process = subprocess.Popen(
            [microvm, "serve", "--tcp", "127.0.0.1:0", "--directory", self.directory.name, "--drain", "100ms"],
            env=environment, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            match = re.match(r"Listening at (http://.*)\.$", line)
            if match:
                self.url = match[1]
                break
        else:
            raise RuntimeError("The server has not begun.")
        for guest in ("spin", "hello", "faults"):
            self.request("PUT", f"/v1/modules/{guest}?poolMaximum=16", (guests / f"{guest}.so").read_bytes())

    def request(self, method, path, body=None):
        request = urllib.request.Request(self.url + path, data=body, method=method)
        request.add_header("Authorization", f"Bearer {TOKEN}")
        with urllib.request.urlopen(request) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def start(self, module, function, *arguments, returns="void", wait=False, **labels):
        body = {"module": module, "function": function, "returns": returns, "labels": labels,
                "arguments": [{"type": type, "value": value} for type, value in arguments]}
        query = "?waitMicroseconds=1e7" if wait else ""
        return self.request("POST", "/v1/calls" + query, json.dumps(body).encode())["id"]

    def state(self, call):
        return self.request("GET", f"/v1/calls/{call}")["state"]

    def end(self):
        self.process.terminate()
        self.process.wait(30)
        self.directory.cleanup()


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "It has not come to that."
        time.sleep(0.01)


def open_page(browser, server, scheme="light"):
    """Opens the page, and logs in. What the browser complains about is a failure."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1400, "height": 900})
    page.set_default_timeout(20_000)
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda message: page.complaints.append(message.text)
            if "Content Security Policy" in message.text else None)
    page.on("request", lambda request: page.complaints.append(request.url)
            if not request.url.startswith((server.url, "data:")) else None)
    page.goto(server.url)
    page.get_by_label("Token", exact=True).fill(TOKEN)
    page.get_by_role("button", name="Go on").click()
    expect(page.locator("#counts")).to_contain_text("running")
    return page


def row(page, call):
    return page.locator(f'tbody tr[data-id="{call}"]')


def test_a_call_is_seen_stopped_continued_and_killed_by_clicking(browser, server, options):
    page = open_page(browser, server)
    call = server.start("spin", "spin", tenant="a")
    expect(row(page, call)).to_contain_text("running")
    row(page, call).click()
    expect(page.locator("#detail-title")).to_have_text(f"Call {call}: spin spin")
    expect(page.locator("#backtrace")).to_contain_text("spin")
    expect(page.locator("#registers")).to_contain_text("rip")
    page.get_by_role("button", name="Stop").click()
    expect(row(page, call)).to_contain_text("stopped")
    assert server.state(call) == "stopped"
    page.get_by_role("button", name="Continue").click()
    expect(row(page, call)).to_contain_text("running")
    page.get_by_role("button", name="Kill…").click()
    page.get_by_role("button", name="Keep it").click()
    assert server.state(call) == "running"
    page.get_by_role("button", name="Kill…").click()
    began = time.monotonic()
    page.get_by_role("button", name="Kill it").click()
    expect(row(page, call)).to_contain_text("killed")
    print(f"    the kill was on the page after {1000 * (time.monotonic() - began):.0f} ms")
    assert server.state(call) == "finished"
    return page


def test_the_keyboard_is_enough(browser, server, options):
    page = open_page(browser, server)
    first, second = server.start("spin", "spin"), server.start("spin", "spin")
    expect(row(page, first)).to_contain_text("running")
    expect(row(page, second)).to_contain_text("running")
    page.keyboard.press("/")
    page.keyboard.type(str(second))
    expect(row(page, first)).to_have_count(0)
    # Past the box and the heads of the table to the one row there is.
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "TR":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#detail-title")).to_contain_text(f"Call {second}")
    page.keyboard.press("s")
    expect(row(page, second)).to_contain_text("stopped")
    page.keyboard.press("c")
    expect(row(page, second)).to_contain_text("running")
    page.keyboard.press("k")
    page.keyboard.press("Escape")
    assert server.state(second) == "running"
    page.keyboard.press("k")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(row(page, second)).to_contain_text("killed")
    assert server.state(first) == "running"
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    return page


def test_what_guests_say_stays_text(browser, server, options):
    page = open_page(browser, server)
    call = server.start("hello", "greet", ("string", MARKUP), wait=True, label=MARKUP)
    row(page, call).click()
    expect(page.locator("#output")).to_contain_text(MARKUP)
    expect(row(page, call)).to_contain_text(MARKUP)
    fault = server.start("faults", "read_address", ("u64", 16), returns="u64", wait=True)
    row(page, fault).click()
    expect(page.locator("#facts")).to_contain_text("memoryAccess")
    expect(page.locator("#backtrace")).to_contain_text("read_address")
    assert page.evaluate("window.pwned") is None
    assert page.locator("img").count() == 0 and page.locator("script").count() == 1
    return page


def test_a_hundred_calls_a_second_do_not_make_it_sluggish(browser, server, options):
    page = open_page(browser, server)
    spinning = server.start("spin", "spin")
    expect(row(page, spinning)).to_contain_text("running")
    page.evaluate("""() => {
        window.gaps = []; let last = performance.now();
        setInterval(() => { const now = performance.now(); gaps.push(now - last - 20); last = now; }, 20);
    }""")
    is_over = threading.Event()
    count = [0]

    def load():
        while not is_over.is_set():
            server.start("spin", "answer", returns="i64")
            count[0] += 1
            time.sleep(0.01)

    threads = [threading.Thread(target=load) for _ in range(2)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    while count[0] < 300:
        time.sleep(0.05)
    row(page, spinning).click()
    expect(page.locator("#detail-title")).to_contain_text(f"Call {spinning}")
    is_over.set()
    for thread in threads:
        thread.join()
    rate = count[0] / (time.monotonic() - began)
    gaps = sorted(page.evaluate("gaps"))
    print(f"    {rate:.0f} calls a second; the page was busy for {gaps[len(gaps) // 2]:.0f} ms as a rule, "
          f"{gaps[-1]:.0f} ms at most")
    assert page.locator("tbody tr").count() <= 200
    assert gaps[len(gaps) // 2] < 100
    return page


def test_a_wrong_token_is_asked_for_again(browser, server, options):
    page = browser.new_page()
    page.complaints = []
    page.goto(server.url)
    page.get_by_label("Token", exact=True).fill("wrong")
    page.get_by_role("button", name="Go on").click()
    expect(page.locator("#status")).to_contain_text("token")
    page.get_by_label("Token", exact=True).fill(TOKEN)
    page.get_by_role("button", name="Go on").click()
    expect(page.locator("#counts")).to_contain_text("running")
    return page


def test_it_is_readable_in_the_light_and_in_the_dark(browser, server, options):
    for tenant in ("a", "b", "c"):
        server.start("spin", "spin_with_host_calls", tenant=tenant)
    server.start("faults", "read_address", ("u64", 16), returns="u64", wait=True, tenant="b")
    for number in range(40):
        server.start("hello", "greet", ("string", f"number {number}"), wait=True, tenant="a")
    stopped = server.start("spin", "spin", tenant="c")
    wait_for(lambda: server.state(stopped) == "running")
    server.request("POST", f"/v1/calls/{stopped}/stop")
    for scheme in ("light", "dark"):
        page = open_page(browser, server, scheme)
        page.wait_for_timeout(2_500)
        row(page, 1).click()
        expect(page.locator("#backtrace")).to_contain_text("#0")
        # The contrast of text and paper, as WCAG computes it.
        contrast = page.evaluate("""() => {
            const light = (c) => { const [r, g, b] = c.match(/\\d+/g).map((v) => (v /= 255) <= 0.04045 ? v / 12.92
                : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
            const style = getComputedStyle(document.body);
            const [x, y] = [light(style.color), light(style.backgroundColor)].sort((a, b) => b - a);
            return (x + 0.05) / (y + 0.05);
        }""")
        assert contrast > 7, contrast
        if options.screenshots:
            page.screenshot(path=str(options.screenshots / f"page-{scheme}.png"))
        assert not page.complaints, page.complaints
        page.close()
    return None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--microvm", required=True)
    parser.add_argument("--guests", type=pathlib.Path, required=True)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--screenshots", type=pathlib.Path)
    options = parser.parse_args()
    tests = [value for name, value in globals().items() if name.startswith("test_")]
    failures = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        for test in tests:
            name = test.__name__.removeprefix("test_").replace("_", " ")
            server = Server(options.microvm, options.guests)
            try:
                page = test(browser, server, options)
                if page is not None:
                    assert not page.complaints, page.complaints
                    page.close()
                print(f"ok      {name}")
            except Exception as error:  # The others are still to run.
                failures += 1
                print(f"FAILED  {name}: {type(error).__name__} {error}")
            finally:
                server.end()
        browser.close()
    print(f"{len(tests) - failures} of {len(tests)} tests of the page passed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
