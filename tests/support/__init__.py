"""What tests share. Small and plain: a test reads on its own, these only set its stage."""
