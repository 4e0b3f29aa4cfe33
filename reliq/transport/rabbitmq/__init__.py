"""RabbitMQ: confirmed publishing, delays in a ladder of queues, dead letters through an exchange of their own."""
