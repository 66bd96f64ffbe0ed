"""Who may look, who may act: the login."""
