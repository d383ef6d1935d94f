"""Countersign: one call, from top to bottom. Each stage passes its value on, or raises a refusal that says why not."""

from __future__ import annotations

import gc

gc.disable()  # imports allocate objects that live forever; collecting during start-up costs 1/7 of it
import os
from types import SimpleNamespace

from flask import Request, current_app

from gateway.answering import Response, answer_to, previewed, replayed, respond
from gateway.doors import OURS, ours
from gateway.reading import read
from gateway.record import Record
from gateway.secrets import placed
from gateway.serving import configure
from gateway.settings import SettingError, load
from policies.access import decide

try:
    gate = load(os.environ)
except SettingError as error:
    raise SystemExit(f"countersign cannot start: {error}") from None
finally:
    gc.enable()
gc.freeze()
configure()


def countersign(request: Request | SimpleNamespace) -> Response:
    """Answer one call. An exception inside the record is recorded and answered as a refusal."""
    with Record(gate.audit, request.environ) as record:
        call = record.call = read(request.environ)  # 400 404 405 408 413 414 415
        policies = record.policies = gate.policies.current(record.deadline)
        caller = record.caller = gate.identity.identify(policies, call, record.now, record.deadline)  # 401 503
        if call.validate_only:
            gate.allowance.take(caller.id)  # 429
        grant = record.grant = decide(policies, caller, call)  # 403 400
        secret = record.secret = gate.secrets.access(grant, record.deadline)  # 503
        if call.validate_only:
            record.answer = previewed(record, grant, gate.store, placed(grant.entitlement, secret))  # takes nothing
            return respond(record, gate.docs)
        admission = record.admission = gate.store.admit(grant, placed(grant.entitlement, secret))  # 429 409 422 424 503
        if admission.replay is not None:
            record.replay()
            record.answer = replayed(admission.replay, grant)
            return respond(record, gate.docs)
        try:
            record.intent(admission)  # 503: no record, no call
        except Exception:
            gate.store.release(grant, admission)
            raise
        reply = gate.upstreams.send(grant, admission, secret, record.deadline, record)  # 400 402 404 424 502 503 504
        answer = record.answer = answer_to(reply, grant, record.audit_id)
        settled = gate.store.settle(grant, record.admission, reply, answer)
        record.close(reply, settled=settled)
    return respond(record, gate.docs)


# Skip Flask's dispatch: it costs more than the policy check, reads refused calls without bound, and answers some paths.
if current_app:
    current_app.wsgi_app = lambda environ, start: (  # type: ignore[method-assign, assignment]
        (environ["RAW_URI"].startswith(OURS) and ours(gate, environ)) or countersign(SimpleNamespace(environ=environ))
    )(environ, start)
