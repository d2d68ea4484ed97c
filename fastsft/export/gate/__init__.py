"""The parity gate's checks: structure, text, behaviour.  Each measures; none repairs."""
