"""What a user asks for, each job one page, built on layout, plan and run."""
