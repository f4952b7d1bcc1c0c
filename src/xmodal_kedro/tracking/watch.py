"""The machine while a node runs: MLflow's system metrics as curves, seconds and peak memory of the node as numbers."""

import os
import sys
import threading
import time
from typing import Any

from xmodal_kedro.tracking.outage import store_outage

MEBIBYTE = 2**20
_MEMORY_INTERVAL = 0.2  # seconds between looks at the process's memory
_SHORTEST, _LONGEST = 1.0, 30.0  # seconds between samples of the system metrics

_monitored: set[str] = set()
_monitored_lock = threading.Lock()


class NodeWatch:
    """Measures from its creation to `stop`.

    Peak memory is the resident memory of this process (processes that a node starts are not in it, other nodes of a
    thread runner are), sampled five times a second. System metrics are sampled each second at first and then ever more
    rarely, so that a run of a minute has a curve and a run of days does not fill the database.
    """

    def __init__(self, run_id: str, tracking_uri: str):
        """Start to measure.

        Args:
            run_id: The run that the system metrics go to. Of several watches of a run, the first sends them.
            tracking_uri: Where the run is.
        """
        import psutil

        self._run_id = run_id
        self._process = psutil.Process()
        self._begun = time.perf_counter()
        self._peak = 0
        self._stopped = threading.Event()
        _cuda("reset_peak_memory_stats")
        self._monitor = self._begin_monitor(tracking_uri)
        self._look()
        self._thread = threading.Thread(target=self._keep_looking, name="NodeWatch", daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        """Stop, and give `seconds`, `peak_memory_mb` and, where CUDA was used, `peak_cuda_mb` (the largest device)."""
        found = {"seconds": time.perf_counter() - self._begun}
        self._stopped.set()
        self._thread.join()
        self._look()
        if self._monitor is not None:
            self._monitor.finish()
            with _monitored_lock:
                _monitored.discard(self._run_id)
        found["peak_memory_mb"] = self._peak / MEBIBYTE
        cuda = _cuda("max_memory_allocated")
        if cuda:
            found["peak_cuda_mb"] = max(cuda) / MEBIBYTE
        return found

    def _begin_monitor(self, tracking_uri: str) -> Any:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        with _monitored_lock:
            if self._run_id in _monitored or store_outage.holds:
                return None
            _monitored.add(self._run_id)
        monitor = SystemMetricsMonitor(
            self._run_id, sampling_interval=_SHORTEST, resume_logging=True, tracking_uri=tracking_uri
        )
        monitor.start()
        return monitor

    def _keep_looking(self) -> None:
        chosen_by_user = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL" in os.environ
        while not self._stopped.wait(_MEMORY_INTERVAL):
            self._look()
            if self._monitor is not None and not chosen_by_user:
                elapsed = time.perf_counter() - self._begun
                self._monitor.sampling_interval = min(_LONGEST, max(_SHORTEST, elapsed / 20))

    def _look(self) -> None:
        self._peak = max(self._peak, self._process.memory_info().rss)


def _cuda(function: str) -> list[float]:
    """Call a function of torch.cuda for every device, if this process has ever used CUDA; imports nothing."""
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return []
    return [getattr(cuda, function)(device) or 0 for device in range(cuda.device_count())]
