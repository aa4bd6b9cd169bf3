import pytest
from vthink.components.common.config import ConfigError
from vthink.components.deployment.config import DeploymentConfig, ServerConfig


def test_default_listens_on_loopback_and_fetches_nothing() -> None:
    config = DeploymentConfig()
    assert config.server.loopback
    assert not config.server.allow_http_media
    assert DeploymentConfig.load(config.to_json()) == config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"server": {"host": "localhost"}}, "IP address"),
        ({"server": {"allowed_media_domains": ["example.org"]}}, "allow_http_media"),
        ({"server": {"allow_http_media": True, "allowed_media_domains": ["https://example.org"]}}, "host name"),
        ({"server": {"max_conncurrency": 3}}, "did you mean 'max_concurrency'"),
        ({"smoke_items": 0}, "smoke_items"),
    ],
)
def test_mistake_is_one_line_that_names_the_key(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        DeploymentConfig.load(settings, "deployment")
    assert "\n" not in str(caught.value)


def test_all_addresses_is_not_loopback() -> None:
    assert not ServerConfig(host="0.0.0.0").loopback
    assert ServerConfig(host="::1").loopback
