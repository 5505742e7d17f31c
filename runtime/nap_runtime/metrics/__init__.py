"""What a decode did, computed from its record alone: order, cost, consistency, agreement, answer."""
