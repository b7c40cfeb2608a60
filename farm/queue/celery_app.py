"""The Celery application that producers, workers and Flower share."""

from __future__ import annotations

from celery import Celery

from farm.settings import Settings

TASK = "farm.run"


def create_celery(settings: Settings) -> Celery:
    """The Celery application that producers, workers and Flower share."""
    app = Celery("farm", broker=settings.broker)
    app.conf.update(
        task_serializer="json",
        event_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        # The worker's own events about attempts, which Flower shows: `workers.runner.shown`.
        worker_send_task_events=True,
        # The database holds the work. A message is only a bell, so it is acked on arrival.
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        # Without this, a message may wait behind a running build while another worker is idle.
        worker_disable_prefetch=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "priority_steps": list(range(10)),
            # A backlog in one queue mustn't starve a worker's others.
            "queue_order_strategy": "round_robin",
            # Who sends doesn't wait for a broker that is away, as Kombu does for 12 s: the sweep sends again
            "max_retries": 0,
            "socket_connect_timeout": 2,
            "socket_timeout": 5,
        },
        task_create_missing_queues=True,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=True,  # read-only: `workers.runner.remote`
    )
    return app
