"""An A/B test and two rollouts on a real mesh: `make ab`."""
