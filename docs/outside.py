"""For mkdocs.yml: pages of the site that lie outside `docs`, and links to what does.

Links are written as they lead in the repository, where all pages can be read too. On
the site they lead to the page or the file itself; those to folders are left out.
"""

import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"\[([^]]*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")  # relative ones


def on_files(files, config):
    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    source = pathlib.Path(page.file.abs_src_path).relative_to(ROOT).as_posix()

    def to_site(link):
        text, target, anchor = link.groups(default="")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if (ROOT / path).is_dir():
            return text
        uri = PAGES.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(uri) is None and (ROOT / path).is_file():
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
        here = posixpath.dirname(page.file.src_uri)
        return f"[{text}]({posixpath.relpath(uri, here)}{anchor})"

    return LINK.sub(to_site, markdown)
