"""Files over HTTP from an open descriptor: ranges, 304, and a media type from our own table."""

from __future__ import annotations

import email.utils
import os
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

# Those of systems differ, and most do not know a camera's suffixes.
MEDIA_TYPES = {
    ".3g2": "video/3gpp2",
    ".avi": "video/x-msvideo",
    ".flv": "video/x-flv",
    ".gif": "image/gif",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".mkv": "video/x-matroska",
    ".mxf": "application/mxf",
    ".ogv": "video/ogg",
    ".webm": "video/webm",
    ".y4m": "video/x-yuv4mpeg",
} | {
    suffix: kind
    for kind, suffixes in {
        "video/mp4": ".mp4 .m4v .f4v .insv",
        "video/quicktime": ".mov .qt",
        "video/3gpp": ".3gp .3gpp",
        "video/mp2t": ".ts .mts .m2ts .m2t",
        "video/mpeg": ".mpg .mpeg .mpe .vob .ps .m2v",
        "video/x-ms-wmv": ".wmv .asf",
        "video/h264": ".264 .h264",
        "video/h265": ".265 .h265 .hevc",
    }.items()
    for suffix in suffixes.split()
}


class StreamedFile(FileResponse):
    """A file that was opened and checked: what is sent is that, whatever its name leads to in the meantime."""

    def __init__(self, descriptor: int, path: Path, *, is_attachment: bool = False) -> None:
        self.descriptor = descriptor
        super().__init__(
            f"/dev/fd/{descriptor}",
            filename=path.name,
            stat_result=os.fstat(descriptor),
            media_type=MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream"),
            content_disposition_type="attachment" if is_attachment else "inline",
            headers={"cache-control": "private, max-age=60"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if is_known(Headers(scope=scope), self.headers):
                kept = ("etag", "last-modified", "cache-control")
                headers = {name: self.headers[name] for name in kept if name in self.headers}
                await Response(status_code=304, headers=headers)(scope, receive, send)
            else:
                await super().__call__(scope, receive, send)
        finally:
            os.close(self.descriptor)


def is_known(asked: Headers, answer: Headers) -> bool:
    """Whether a client has what an answer would bring (RFC 9110, section 13)."""
    if "if-none-match" in asked:
        tags = [tag.strip().removeprefix("W/") for tag in asked["if-none-match"].split(",")]
        return answer.get("etag", "").removeprefix("W/") in tags or tags == ["*"]
    since, changed = (
        email.utils.parsedate_tz(text) if text else None
        for text in (asked.get("if-modified-since"), answer.get("last-modified"))
    )
    if since is None or changed is None:
        return False
    return email.utils.mktime_tz(changed) <= email.utils.mktime_tz(since)
