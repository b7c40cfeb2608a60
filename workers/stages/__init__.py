"""The stages of a build, each with ``run(stage) -> StageResult``. None imports another."""
