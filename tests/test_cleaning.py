"""pipeline/preparation/cleaning.py: which comments go, which files and which completions cannot serve."""
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.preparation import cleaning
from pipeline.preparation.cleaning import clean, is_trivial, notice_spans
from pipeline.preparation.comments import UNKNOWN, style_of

CODE = "package a\n\nfun main() {}\n"


def strip_copyright(source: str, path: str | None = None) -> str:
    return cleaning.strip_copyright(source, style_of(path))


@pytest.mark.parametrize("comment", [
    "/* Copyright 2020 A. */",
    "/*\n * Copyright 2010-2024 JetBrains s.r.o.\n"
    " * Use of this source code is governed by the Apache 2.0 license.\n */",
    "/**\n * Copyright (c) 2020 A\n */",
    "/***** COPYRIGHT *****/",
    "// Copyright 2020 A\n// All rights reserved.",
    "// Copyright 2020 A",
    "//Copyright 2020 A\n  //   and others",
    "// SPDX-License-Identifier: Apache-2.0",
    "/* SPDX-License-Identifier: MIT */",
    "# Copyright 2020 A",
    "/*\n * Licensed under the Apache License, Version 2.0 (the \"License\");\n */",
    "/* Licensed to the ASF under one or more contributor license agreements. */",
    "/* © 2020 A */",
    "/* (c) 2020 A */",
    "/* (C) 1999 A */",
    "// All rights reserved",
    "/* This file is released into the public domain. */",
    "/* Permission is hereby granted, free of charge, to any person */",
    "/* See the LICENSE file. */",
    "// Distributed under the MIT license",
    "/* GNU General Public License */",
    "/* Copyright 2020 A */\n\n// SPDX-License-Identifier: MIT",
    "// Copyright 2020 A\n\n/* Licensed under X */",
    "/* Copyright // 2020 */",
    "/* copyright\n\n\n   with blank lines */",
    "/* Copyright 2020 ООО «Ромашка» 株式会社 */",
])
@pytest.mark.parametrize(("before", "between"), [("", "\n\n"), ("\ufeff", "\n"), ("\n \n\t", "\n\n\n")])
def test_copyright_comments_go(comment: str, before: str, between: str) -> None:
    """The model learns to write licence headers."""
    assert strip_copyright(before + comment + between + CODE) == CODE


@pytest.mark.parametrize("source", [
    CODE,
    "",
    "\n\n" + CODE,
    "/* Parses numbers. */\n" + CODE,
    "/** Says hello. */\n" + CODE,
    "// The entry point\n" + CODE,
    "package a\n\n/* Returns the copyright of a file. */\nval x = 1\n",
    "package a\n\n// Licence files, and who reads the license file\nval x = 1\n",
    "package a\n\nval x = 1\n/* Copyright 2020 A */\n",
    CODE + "// Copyright 2020 A\n",
    "/* Copyright */ package a\n",
    "/* Copyright 2020\n */ package a\n",
    "/* Copyright 2020 without an end\n" + CODE,
    "val s = \"/* Copyright 2020 */\"\n",
    "\"// Copyright\"\n",
    "@file:JvmName(\"Copyright\")\n" + CODE,
    "#!/usr/bin/env kotlin\n" + CODE,
    "#!/usr/bin/copyright\n" + CODE,
    "import copyright.A\n",
    "/* MIT invented it; see the licence_plate table */\n" + CODE,
    "// (c) the third case\n" + CODE,
])
def test_everything_else_stays(source: str) -> None:
    """Code or documentation is deleted as if it were a licence header."""
    assert strip_copyright(source) == source


@pytest.mark.parametrize(("source", "expected"), [
    ("#!/usr/bin/env kotlin\n/* Copyright 2020 A */\n" + CODE, "#!/usr/bin/env kotlin\n" + CODE),
    ("/* Copyright 2020 A */\n/** Says hello. */\n" + CODE, "/** Says hello. */\n" + CODE),
    ("// Copyright 2020 A\n\n// What it does\n" + CODE, "// What it does\n" + CODE),
    ("/* Copyright 2020 A */\n" + CODE + "// Copyright 2020 B\n", CODE + "// Copyright 2020 B\n"),
    ("// SPDX-License-Identifier: MIT\n@file:Suppress(\"a\")\n", "@file:Suppress(\"a\")\n"),
    ("/* Copyright 2020 A */\nval s = \"*/\"\n", "val s = \"*/\"\n"),
    ("/* Copyright 2020 A */", ""),
    ("\ufeff" + CODE, CODE),
    ("package a\n/* Copyright 2020 A */\nval x = 1\n", "package a\nval x = 1\n"),
    ("package a\n\n/*\n * Copyright (c) A 2020\n */\n\n    val x = 1\n", "package a\n\n    val x = 1\n"),
    ("package a\n\nimport b.c\nimport d.*\n\n// Copyright 2020 A\n\n/** Says */\nval x = 1\n",
     "package a\n\nimport b.c\nimport d.*\n\n/** Says */\nval x = 1\n"),
    ("/* What it does. */\n/* Copyright 2020 A */\n" + CODE, "/* What it does. */\n" + CODE),
    ("@file:JvmName(\"A\")\n\n/* Copyright 2020 A */\n" + CODE, "@file:JvmName(\"A\")\n\n" + CODE),
    ("@file:Suppress(\n    \"a\",\n    \"b\")\n/* Copyright 2020 A */\n" + CODE,
     "@file:Suppress(\n    \"a\",\n    \"b\")\n" + CODE),
])
def test_what_surrounds_a_copyright_comment_stays(source: str, expected: str) -> None:
    """A shebang, the documentation or a later comment goes with the licence header."""
    assert strip_copyright(source) == expected


@pytest.mark.parametrize(("path", "above", "comment", "below"), [
    ("a.py", "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n", "# Copyright 2020 A\n", "import a\n"),
    ("a.py", "import a\nfrom b import (\n    c,\n)\n\n", "# Copyright 2020 A\n", "d = 1\n"),
    ("a.hs", "{-# LANGUAGE CPP #-}\n{-# LANGUAGE GADTs #-}\n", "-- |\n-- Copyright : (c) A 2020\n",
     "module A where\n"),
    ("a.c", "#pragma once\n", "// Copyright 2020 A\n", "int a;\n"),
    ("a.h", "#ifndef A_H\n#define A_H \\\n  1\n\n", "/* Copyright 2020 A */\n", "int a;\n"),
    ("a.go", "//go:build linux\n\n", "// Copyright 2020 A\n", "package a\n"),
    ("a.go", "package a\n\nimport (\n\t\"b\"\n)\n\n", "// Copyright 2020 A\n", "func c() {}\n"),
    ("a.rb", "# frozen_string_literal: true\n\n", "# Copyright 2020 A\n", "a = 1\n"),
    ("a.php", "<?php\n", "/* Copyright 2020 A */\n", "$a = 1;\n"),
    ("a.xml", '<?xml version="1.0"?>\n', "<!-- Copyright 2020 A -->\n", "<a/>\n"),
    ("a.pas", "unit A;\n\n{$mode objfpc}\n", "{ Copyright 2020 A }\n", "interface\n"),
    ("a.el", ";;; a.el --- A  -*- lexical-binding: t -*-\n\n", ";; Copyright (C) 2020 A\n", "(a)\n"),
    ("a.erl", "-module(a).\n", "%% Copyright 2020 A\n", "f() -> 1.\n"),
    ("a.js", "'use strict';\nconst a = require('a');\n\n", "// Copyright 2020 A\n", "a();\n"),
    ("a.ml", '# 2 "a.ml"\n', "(* Copyright 2020 A *)\n", "let a = 1\n"),
    ("a.rkt", "#lang racket\n", ";; Copyright 2020 A\n", "(a)\n"),
])
def test_a_notice_below_what_may_stand_above_it(path: str, above: str, comment: str, below: str) -> None:
    """Every file of a language whose files begin with a pragma keeps its licence header."""
    assert strip_copyright(above + comment + "\n" + below, path) == above + below
    assert strip_copyright(above + below, path) == above + below


@given(st.text(alphabet="/*# \ncopyright©x!\ufeff", max_size=60))
def test_only_comments_above_the_code_are_ever_removed(source: str) -> None:
    """Cleaning changes the code below the header."""
    cleaned = strip_copyright(source)
    text = source.removeprefix("\ufeff")
    places = [0, *(place for span in notice_spans(text, UNKNOWN) for place in span), len(text)]
    kept = "".join(text[begin:end] for begin, end in zip(places[::2], places[1::2], strict=True))
    assert cleaned.split() == kept.split()
    for begin, end in zip(places[1:-1:2], places[2:-1:2], strict=True):
        assert text[begin:end].startswith(("/*", "//", "#"))


@pytest.mark.parametrize(("text", "generated", "short", "reason"), [
    (CODE, False, False, None),
    (" \n", False, False, "empty after cleaning"),
    (" \n", True, True, "empty after cleaning"),
    ("package a\n", False, False, "fewer than two lines"),
    ("\n\npackage a\n\n\n", False, False, "fewer than two lines"),
    ("package a\n", False, True, None),
    ("// Generated. DO NOT EDIT\n" + CODE, False, False, "generated by a machine"),
    ("// @generated by x\n" + CODE, False, False, "generated by a machine"),
    ("// @generated by x\n" + CODE, True, False, None),
    ("// @generatedBy x\n" + CODE, False, False, None),
    ("/* Copyright 2020 A. Code generated by x. */\n" + CODE, False, False, "generated by a machine"),
    (CODE + "\n" * 30 + "// do not edit\n", False, False, None),
])
def test_drop_reason(text: str, generated: bool, short: bool, reason: str | None) -> None:
    """A good file is dropped, or a useless one is kept."""
    options = {"keep_copyright": False, "keep_generated": generated, "keep_short": short}
    assert clean(text, "A.kt", options)[1] == reason


@pytest.mark.parametrize(("text", "trivial"), [
    ("import a.b.C\nimport d.E\n", True),
    ("import a.b.*  // all of it\n", True),
    ("    }\n}\n", True),
    ("\t\u3000}\r\n", True),
    ("jetbrains.kotlin.psi\nimport a.b\n", True),
    ("", True),
    (" \n\n", True),
    ("package a\n", True),
    ("    return x\n}\n", False),
    ("val a = 1", False),
    ("import a\nfun f() {}", False),
    ("imported = 1\n", False),
    (" " * 100_000 + "a = b\n", False),  # hours, if what white space may match is ambiguous
])
def test_trivial_completions(text: str, trivial: bool) -> None:
    """Imports and closing braces are measured as if they were code, or real code is left out of the test."""
    assert is_trivial(text) is trivial
