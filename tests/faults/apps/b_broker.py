"""The broker of these applications: on Redis or on RabbitMQ, as the scheme of APP_URL says."""

import os


def connect(settings):
    """A broker; on Redis `settings` may have arguments of `client` and `broker`."""
    url = os.environ["APP_URL"]
    if url.startswith("amqp"):
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        return RabbitmqBroker(url=url)
    import redis
    from dramatiq.brokers.redis import RedisBroker

    client = redis.Redis.from_url(url, retry=None, **settings.get("client", {}))
    return RedisBroker(client=client, namespace=os.environ["APP_NAMESPACE"], **settings.get("broker", {}))
