"""The HTTP side and the worker: a delivery is checked, written down, acknowledged, and worked on afterwards."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from mlflow_lipschitz.errors import LipschitzError
from mlflow_lipschitz.webhooks.deliveries import ALIAS_CREATED, VERSION_CREATED, BadDelivery, Delivery, read_delivery
from mlflow_lipschitz.webhooks.handling import ReceiverSettings, TryAgain, handle, report_failure, standing_aliases
from mlflow_lipschitz.webhooks.queue import Queue

_LIMIT = 1 << 20
_TRIES = 3
_SWEEP_SECONDS = 3600.0
_PAUSE_SECONDS = 5.0
_logger = logging.getLogger(__name__)


class Worker:
    """One thread that takes deliveries of one event from the queue until it is told to stop.

    Aliases have a worker of their own: an audit may take an hour, and an alias must not stand that long unexamined.
    """

    def __init__(self, queue: Queue, settings: ReceiverSettings, event: str) -> None:
        self._queue, self._settings, self._event = queue, settings, event
        self._stop, self._news = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="lipschitz-receiver", daemon=True)
        self._swept, self._broken = float("-inf"), False

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the delivery at hand and end. What is waiting stays in the queue."""
        self._stop.set()
        self._news.set()
        self._thread.join(timeout=5)

    def wake(self) -> None:
        """There is something new."""
        self._news.set()

    @property
    def alive(self) -> bool:
        """Whether somebody works on what is acknowledged."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._news.clear()
            try:
                self._turn()
            except Exception:  # a worker that ends would leave acknowledged deliveries lying for ever
                _logger.exception("the worker for %s broke off, and goes on in %g s", self._event, _PAUSE_SECONDS)
                self._broken = True
                self._stop.wait(_PAUSE_SECONDS)
            self._news.wait(timeout=1.0)

    def _turn(self) -> None:
        if self._broken:
            self._queue.restart(self._event)
            self._broken = False
        self._sweep()
        while not self._stop.is_set() and (delivery := self._queue.take(self._event)) is not None:
            self._work(delivery)

    def _work(self, delivery: Delivery) -> None:
        try:
            outcome = handle(delivery, self._settings, last_try=self._queue.tries(delivery) >= _TRIES)
        except TryAgain as error:
            self._again(delivery, str(error))
        except Exception as error:  # noqa: BLE001 - one delivery that cannot be handled must not end the worker
            self._again(delivery, repr(error))
        else:
            self._queue.finish(delivery, outcome)
            _logger.info("%s %s/%s: %s", delivery.event, delivery.name, delivery.version, outcome)

    def _again(self, delivery: Delivery, reason: str) -> None:
        """An audit is given up after a few tries, and the version says so; an alias is looked at until it can be."""
        tries = self._queue.tries(delivery)
        _logger.warning("%s %s/%s, try %d: %s", delivery.event, delivery.name, delivery.version, tries, reason)
        if delivery.event == VERSION_CREATED and tries >= _TRIES:
            try:
                report_failure(delivery, self._settings, reason)
            except LipschitzError as error:
                reason = f"{reason}; and the version could not be tagged: {error}"
            self._queue.finish(delivery, f"gave up: {reason}")
        else:
            self._queue.postpone(delivery, min(300.0, 2.0**tries), reason)

    def _sweep(self) -> None:
        """Look at every guarded alias at the start and once an hour."""
        if (
            self._event != ALIAS_CREATED
            or not self._settings.aliases
            or time.monotonic() - self._swept < _SWEEP_SECONDS
        ):
            return
        try:
            for delivery in standing_aliases(self._settings):
                self._queue.add(delivery)
            self._swept = time.monotonic()
        except LipschitzError as error:
            self._swept = time.monotonic() - _SWEEP_SECONDS + 60
            _logger.warning("the guarded aliases cannot be listed: %s", error)


def receiver(queue: Queue, settings: ReceiverSettings, secret: str) -> FastAPI:
    """The application: `POST /webhook` takes deliveries, `GET /health` counts them."""
    workers = {event: Worker(queue, settings, event) for event in (VERSION_CREATED, ALIAS_CREATED)}

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        queue.restart()  # what a killed process left
        for worker in workers.values():
            worker.start()
        yield
        for worker in workers.values():
            await run_in_threadpool(worker.stop)

    app = FastAPI(title="mlflow-lipschitz receiver", lifespan=running, docs_url=None, redoc_url=None, openapi_url=None)

    # Added by hand: the annotations of a route declared here are text, which FastAPI looks up in the module alone.
    async def webhook(request: Request) -> JSONResponse:
        return await _received(request, queue, workers, secret)

    async def health(_: Request) -> JSONResponse:
        counts = await run_in_threadpool(queue.counts)
        idle = [event for event, worker in workers.items() if not worker.alive]
        return JSONResponse({**counts, "stopped": idle}, status_code=503) if idle else JSONResponse(counts)

    app.add_route("/webhook", webhook, methods=["POST"])
    app.add_route("/health", health, methods=["GET"])
    return app


async def _received(request: Request, queue: Queue, workers: Mapping[str, Worker], secret: str) -> JSONResponse:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LIMIT:
            return JSONResponse({"error": f"more than {_LIMIT} bytes"}, status_code=413)
    headers = {name.lower(): value for name, value in request.headers.items()}
    try:
        delivery = read_delivery(headers, body, secret, now=time.time())
    except BadDelivery as error:
        return JSONResponse({"error": str(error)}, status_code=error.status)
    if delivery is None:
        return JSONResponse({"queued": False})
    try:
        new = await run_in_threadpool(queue.add, delivery)
    except sqlite3.Error as error:
        # MLflow tries again after 503: what is not on the disk is not acknowledged.
        return JSONResponse({"error": f"the queue cannot be written: {error}"}, status_code=503)
    workers[delivery.event].wake()
    return JSONResponse({"queued": new})
