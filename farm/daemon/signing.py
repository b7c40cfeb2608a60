"""Signs engines soon after they are published, whoever asks for them, and those of before there was a key."""

from __future__ import annotations

import logging
import threading

from farm.database.session import Database
from farm.errors import FarmError, NotFound, Unavailable
from farm.registry import signed
from farm.trust.signatory import Signatory

log = logging.getLogger(__name__)

_AT_ONCE = 20
_REST_S = 30.0  #: whoever asks for a signature before that has it made
_AFTER_ERROR_S = 60.0


class Notary(threading.Thread):
    """Runs in every API process; several at once are harmless."""

    def __init__(self, db: Database, signatory: Signatory) -> None:
        super().__init__(name="notary", daemon=True)
        self._db = db
        self._signatory = signatory
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()
        self.join(timeout=10)

    def run(self) -> None:
        while not self._stopped.is_set():
            rest_s = _REST_S
            try:
                if self.sign_some() == _AT_ONCE:
                    rest_s = 0.0
            except Unavailable as err:
                log.warning("%s; engines stay unsigned for now", err.detail)
                rest_s = _AFTER_ERROR_S
            except Exception:
                # A bug may cost a round, but must not end the thread.
                log.exception("signing hit a bug; it continues")
                rest_s = _AFTER_ERROR_S
            self._stopped.wait(rest_s)

    def sign_some(self) -> int:
        """Sign some of the engines that aren't yet; return how many. None without a key.

        Raises:
            Unavailable
        """
        if self._signatory.signer() is None:
            return 0
        with self._db.read() as session:
            waiting = signed.unsigned(session, _AT_ONCE)
        for engine_id in waiting:
            if self._stopped.is_set():
                break
            try:
                self._signatory.sign(engine_id)
            except NotFound:
                continue  # it was deleted meanwhile
            except Unavailable:
                raise
            except FarmError as err:
                log.error("engine %s can't be signed: %s", engine_id, err.detail)
        return len(waiting)
