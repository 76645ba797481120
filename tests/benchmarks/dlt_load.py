"""The same work with dlt, as its documentation shows it: `API_URL DATABASE_URL FOLDER`."""

import sys
from typing import Any

import dlt
from dlt.sources.rest_api import rest_api_source
from sqlalchemy.engine import make_url

from tests.benchmarks.server import phone_number


def load(api_url: str, database_url: str, folder: str) -> None:
    """Load the first number's chats, merged by id; `folder` keeps the pipeline's state."""
    source = rest_api_source(
        {
            "client": {"base_url": f"{api_url}/api/partner/v2/"},
            "resources": [
                {
                    "name": "chats",
                    "primary_key": "id",
                    "write_disposition": "merge",
                    "endpoint": {
                        "path": "chats",
                        "params": {"phone_number": phone_number(0).strip("+"), "per_page": 100},
                        "data_selector": "data",
                        "paginator": {
                            "type": "page_number",
                            "base_page": 1,
                            "total_path": "meta.total_pages",
                        },
                    },
                }
            ],
        }
    )
    pipeline = dlt.pipeline(
        "bench",
        pipelines_dir=folder,
        destination=_destination(database_url),
        dataset_name="bench",
    )
    pipeline.run(source).raise_on_failed_jobs()


def _destination(database_url: str) -> Any:
    if database_url.startswith("sqlite"):
        return dlt.destinations.sqlalchemy(database_url)
    url = make_url(database_url)
    # dlt requires both, although a server on a socket that trusts its users needs neither.
    url = url.set(password=url.password or "none", host=url.host or "localhost")
    return dlt.destinations.postgres(url.render_as_string(hide_password=False))


if __name__ == "__main__":
    load(*sys.argv[1:])
