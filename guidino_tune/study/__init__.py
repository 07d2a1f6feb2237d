"""What is decided and kept: the persisted study, its samplers, pruners and outcomes, and the driver that asks, reports and tells."""
