"""Data plane of the engine farm: Celery workers and the stages that they run in child processes."""
