"""Policy and endpoints out: resources, watch streams, the fleet as it is seen."""
