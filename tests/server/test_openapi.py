"""The API description is valid, complete and can be looked at without the internet."""

import re

import httpx2
import openapi_spec_validator
import pytest
from starlette.routing import Route

from server.app import ENDPOINTS, FILES, create_app
from server.pages import assets
from tests.serving import Talker, context, running, with_engine


def test_it_is_valid_openapi_with_every_route_in_it() -> None:
    app = create_app(context(Talker()))
    document = app.state.openapi
    openapi_spec_validator.validate(document)
    assert document["openapi"].startswith("3.1")
    described = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
    }
    served = {
        (method, re.sub(r":\w+}", "}", route.path))
        for route in app.routes
        if isinstance(route, Route) and not route.path.startswith(FILES)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert described == served
    assert len(served) == len(ENDPOINTS)


@pytest.mark.anyio
async def test_the_pages_and_their_assets_are_local() -> None:
    with running(with_engine(Talker())) as url:
        async with httpx2.AsyncClient(base_url=url) as client:
            page = await client.get("/docs")
            for link in re.findall(r'(?:src|href)="([^"]+)"', page.text):
                assert not link.startswith(("http", "//"))
                assert (await client.get("/" + link)).status_code == 200
            start = await client.get("/")
            assert "open-speech" in start.text
            assert (await client.get("/assets/page.css")).status_code == 200
            assert "script-src" not in page.headers["content-security-policy"]
    assert (assets() / "swagger-ui.css").is_file()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
