"""The operator's API: operator.proto over store, fleet and figures."""
