"""What MkDocs does not know of this repository, as its hooks: mkdocs.yml names this file.

- Pages that live outside docs/ (examples, CHANGELOG) become pages of the site.
- A link to a file of the repository leads to a page that shows the file.
- `<!-- command line -->` is replaced by the reference of all commands.
- Lists are indented as Python-Markdown wants them.
- `<!-- section -->[TEXT](PAGE.md#ANCHOR)` is replaced by that section of another page.
- A picture leads to its full size, and a mean stays on one line with its deviation.
"""

from __future__ import annotations

from pathlib import Path

from command_line import with_command_line
from content import with_linked_pictures, with_whole_numbers
from links import RepositoryLinks
from lists import with_wide_lists
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from repository import SOURCE, Repository
from sections import with_sections

repository = Repository(Path(__file__).resolve().parents[2])
links = RepositoryLinks(repository)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    repository.begin(config.extra["pages_of_repository"])
    config.markdown_extensions.append(links)  # a list of names, or of extensions
    config.watch.append(str(repository.root / "feddkd" / "cli"))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, content in repository.pages().items():
        # Pages that show a source file are reached by links alone.
        inclusion = InclusionLevel.NOT_IN_NAV if page.startswith(SOURCE) else InclusionLevel.INCLUDED
        files.append(File.generated(config, page, content=content, inclusion=inclusion))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    links.page = page.file.src_uri
    whole = with_command_line(with_sections(markdown, page.file.src_uri, repository.docs))
    # GitHub renders Markdown inside of <details>; Python-Markdown wants to be asked.
    return with_wide_lists(whole.replace("<details>", '<details markdown="1">'))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    return with_linked_pictures(with_whole_numbers(html))
