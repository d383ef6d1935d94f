"""Countersign: one call, from top to bottom. Each stage hands its value on, or raises the refusal that says why."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import gunicorn.config
from flask import Response, current_app, request

from gateway.answering import respond
from gateway.reading import read
from gateway.settings import DEFAULT_THREADS, GRACE_SECONDS, SettingError, load
from gateway.upstreams.sending import preview
from policies.access import decide

if TYPE_CHECKING:
    from flask import Request

# The framework loads this file before it configures its server, and reads these.
os.environ.setdefault("THREADS", DEFAULT_THREADS)
gunicorn.config.GracefulTimeout.default = GRACE_SECONDS
gunicorn.config.WorkerClass.default = "gateway.worker.Worker"
# A path with // in it gets our refusal, not a redirect to somewhere else.
current_app.url_map.merge_slashes = False
# What the framework would answer by itself (/robots.txt, /static/x, a newline in the path) gets our refusal too.
for status in (404, 405):
    current_app.register_error_handler(status, lambda _: countersign(request))

try:
    gate = load(os.environ)
except SettingError as error:
    raise SystemExit(f"countersign cannot start: {error}") from None


def countersign(request: Request) -> Response:
    """Answer one call. Whatever is raised inside the record is recorded and answered there."""
    with gate.audit.open(request.environ) as record:
        call = read(request.environ)  # 400 404 405 408 413 414 415
        policies = gate.policies.current(record.deadline)
        caller = record.caller = gate.identity.identify(policies, call, record.now, record.deadline)  # 401 503
        grant = record.grant = decide(policies, caller, call)  # 403 400
        if grant.validate_only:
            record.preview(preview(grant))
            return respond(record)
        secret = record.secret = gate.secrets.access(grant, record.deadline)  # 503
        admission = record.admission = gate.store.admit(grant)  # 429 409 422 424 503
        if admission.replay is not None:
            record.replay(admission)
            return respond(record)
        try:
            record.intent(admission)  # 503: no record, no call
        except Exception:
            gate.store.release(grant, admission)
            raise
        reply = gate.upstreams.send(grant, admission, secret, record.deadline)  # 400 402 404 424 502 503 504
        answer = record.answer_to(reply)
        settled = gate.store.settle(grant, admission, reply, answer)
        record.close(reply, answer, settled=settled)
    return respond(record)
