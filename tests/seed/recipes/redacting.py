from pgmonkey import load_config, redact_config

cfg = load_config('config.yaml', resolve_env=True)

# Safe to log - sensitive values are masked
print(redact_config(cfg))
# {'connection_settings': {'password': '***REDACTED***', 'host': 'db.prod.com', ...}}
