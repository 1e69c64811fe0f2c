"""The control plane: policy out, spans in, an operator's API. Never in the path of a call."""
