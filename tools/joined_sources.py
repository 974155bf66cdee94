#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tools/joined_sources.py SOURCE...: which sources a compiler may read as one file; a line a group, its sources between semicolons.

Most of the time of a compiler and of clang-tidy goes over headers, again for each source. Sources that declare the same name in
their unnamed namespaces go into different groups."""
import re
import sys

MOST = 12  # sources of a group: beyond this little is saved, and the two last ones run longer alone
DECLARED = re.compile(
    r"^(?! )(?:template.*> *)?(?:static |inline |constexpr |const )*"
    r"(?:(?:struct|class|enum class|enum) (?P<type>\w+)|[\w:<>,*& ]+[ *&](?P<name>\w+)(?: ?=|\(|\[|\{|;))", re.M)


def declared_names(source):
    """What the unnamed namespaces of `source` declare: the names that may be there in another source, too."""
    text = "\n".join(re.findall(r"^namespace \{$(.*?)^\}  // namespace$", open(source).read(), re.M | re.S))
    return {m["type"] or m["name"] for m in DECLARED.finditer(text)}


def make_groups(sources):
    """Lists of sources with equal flags, none of which declares a name of another one in its list. `sources`: {source: flags}."""
    groups = []  # [flags, sources, names]
    for source, flags in sorted(sources.items()):
        names = declared_names(source)
        for group in groups:
            if group[0] == flags and len(group[1]) < MOST and not names & group[2]:
                group[1].append(source)
                group[2] |= names
                break
        else:
            groups.append([flags, [source], names])
    return [sources for _, sources, _ in groups]


if __name__ == "__main__":
    for group in make_groups({source: None for source in sys.argv[1:]}):
        print(";".join(group))
