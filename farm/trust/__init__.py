"""Authentication and trust: keys, hosts, plugins, audit."""
