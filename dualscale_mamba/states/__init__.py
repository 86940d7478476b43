"""The state of the state space between two steps, stored in eight bits."""
