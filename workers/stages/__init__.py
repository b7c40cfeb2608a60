"""The stages of a build, each with ``run(stage) -> StageResult``. No stage imports another."""
