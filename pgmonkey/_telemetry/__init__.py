"""What is told of statements, transactions and connections, and to whom: logs, OpenTelemetry, Prometheus."""
