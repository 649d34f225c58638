"""messages → text, by a Jinja template that may come from anyone: files, template, sandbox, budget, meter."""
