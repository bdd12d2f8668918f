"""An upload that survives broken connections, by the wire table alone. The README shows it."""

import time

from grpc import StatusCode

AGAIN = (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED, StatusCode.ABORTED,
         StatusCode.INTERNAL, StatusCode.UNKNOWN)


def upload(method, session, records, part=500):
    committed, epoch = 0, []
    while committed < len(records):
        head = [("flow-session", session), ("flow-start", str(committed + 1)), *epoch]
        call = method.future(iter(records[committed:committed + part]), metadata=head, wait_for_ready=True)
        error, end = call.exception(), dict(call.trailing_metadata() or ())  # waits for the end of the stream
        if "flow-failed" in end or (call.code() not in AGAIN if error else "flow-epoch" not in end):
            raise error or RuntimeError("the server has no sessions")
        committed = int(end.get("flow-committed", committed))  # a broken connection says nothing: the same again
        epoch = [("flow-epoch", end["flow-epoch"])] if "flow-epoch" in end else epoch
        time.sleep(0.2 if error else 0)
