"""Records of what was found, as a stranger's word: the process that sent them had read a stranger's model."""
