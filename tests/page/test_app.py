"""The whole app from click to chat, nothing scripted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request

import pytest
from playwright.sync_api import expect

from evaluation.spec import RunSpec
from evaluation.store import Store
from kernels import cpu
from tests import tiny
from tests.page.stage import ROOT, address, free_port, says, shot, slowed

pytestmark = pytest.mark.browser
SECONDS = 300  # the first run waits for the kernels to be built, 40 s on a slow processor


def test_the_real_app_from_click_to_chat(browser, tmp_path):
    (tmp_path / "test.txt").write_text("".join(f"line {i} of a small text, {i * i}\n" for i in range(400)))
    (tmp_path / "valid.txt").write_text("".join(f"other words {i}, {i**3} of them\n" for i in range(400)))
    (tmp_path / "home").mkdir()
    # tests/kernels/cpu/test_cpu.py builds them in homes of its own
    (tmp_path / "home" / "kernels").symlink_to(cpu.cache())
    port = free_port()
    environment = dict(os.environ) | {
        "GRADIO_SERVER_PORT": str(port),
        "COMPRESSION_EXPLORER_HOME": str(tmp_path / "home"),
    }
    process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, start_new_session=True)
    url = f"http://127.0.0.1:{port}/"
    try:
        begin = time.time()
        while True:
            try:
                urllib.request.urlopen(url, timeout=SECONDS).read()
                break
            except OSError:
                assert time.time() - begin < SECONDS and process.poll() is None
                time.sleep(0.1)

        def window(**options):
            page = slowed(browser.new_context(**options).new_page())
            page.set_default_timeout(1000 * SECONDS)
            return page

        page = window(viewport={"width": 1440, "height": 900})
        query = (
            f"?model={tiny.folder('qwen3')}&text={tmp_path / 'test.txt'}&calibration={tmp_path / 'valid.txt'}"
        )
        page.goto(
            url + query + "&tokens=512&calibration_tokens=512&window=64&method=gptq&bits=4&group_size=16"
        )
        page.wait_for_selector("#controls .go:enabled")
        page.locator("#controls .go").click()
        page.wait_for_selector("#controls .progress:visible")
        page.wait_for_selector("#card [data-act=chat]")
        page.wait_for_selector("#front .plot[data-drawn]")
        says(page, "#card h2", "GPTQ, 4 bits, group 16")
        page.reload()
        page.wait_for_selector("#card [data-act=chat]")
        with page.expect_download() as download:
            page.locator("#card [data-act=download]:not([data-form])").click()
        import zipfile

        names = zipfile.ZipFile(download.value.path()).namelist()
        assert any(n.endswith("model.safetensors") for n in names) and any(
            n.endswith("compression.json") for n in names
        )
        page.locator("#card [data-act=chat]").click()
        page.locator("#prompt").fill("hello")
        page.locator("#chat button[type=submit]").click()
        page.wait_for_function(
            "/differ after|wrote the same/.test(document.querySelector('#chat .chat-status').textContent)"
        )
        expect(page.locator("#chat .live").nth(1)).to_contain_text("tokens/s")
        shot(page, "real-chat")
        page.close()
        tab = window()  # a tab that is closed while its run goes on
        shorter = "&tokens=4096&calibration_tokens=512&window=64&method=rtn&bits=3&group_size=16"
        tab.goto(url + query + shorter)
        tab.wait_for_selector("#controls .go:enabled")
        tab.locator("#controls .go").click()
        tab.wait_for_selector("#controls .progress:visible")
        address(tab, "run=")
        link = tab.evaluate("location.href")
        tab.close()
        back = window()
        back.goto(link)
        back.wait_for_selector("#card [data-act=chat]")
        says(back, "#card h2", "Rounding, 3 bits")
        spec = RunSpec.parse(
            next(r for r in Store(tmp_path / "home").own() if r.spec.recipe[0][0] == "rtn").spec.json()
        )
        assert spec.methods[0][1].bits == 3
    finally:
        process.terminate()
        process.wait(SECONDS)
