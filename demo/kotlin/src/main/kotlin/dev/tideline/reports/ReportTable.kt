/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.reports

import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.into
import dev.tideline.core.ledger
import dev.tideline.core.requireThat

/** Names the side on which the text of a column sits. */
enum class Side { LEFT, RIGHT }

/** Describes a column by its title and by how it reads a row. */
data class Column<R>(val title: String, val side: Side, val read: (R) -> Any?)

/** Collects the columns of a report. */
class ReportScope<R> {
    internal val columns = mutableListOf<Column<R>>()

    /** Adds a column of words. */
    fun words(title: String, read: (R) -> Any?) {
        columns += Column(title = title, side = Side.LEFT, read = read)
    }

    /** Adds a column of numbers, which sit on the right. */
    fun numbers(title: String, read: (R) -> Any?) {
        columns += Column(title = title, side = Side.RIGHT, read = read)
    }
}

/** Starts a report whose columns are described in the block. */
fun <R> report(title: String, block: ReportScope<R>.() -> Unit): ReportTable<R> =
    ReportTable(title, ReportScope<R>().apply(block).columns)

/** Renders rows of any type as a table. */
class ReportTable<R>(private val title: String, private val columns: List<Column<R>>) {
    private val log = ledger<ReportTable<*>>()

    /** Renders the rows as text with aligned columns. */
    fun renderText(rows: List<R>): Outcome<String> =
        requireColumns().into {
            val cells = rows.map(::cellsOf)
            val widths = columns.mapIndexed { index, column ->
                maxOf(column.title.length, cells.maxOfOrNull { it[index].length } ?: 0)
            }
            val head = alignedLine(columns.map { it.title }, widths)
            val rule = widths.joinToString("  ") { "-".repeat(it) }
            log.note("report.rendered", "title" to title, "rows" to rows.size)
            (listOf(title, head, rule) + cells.map { alignedLine(it, widths) }).joinToString("\n")
        }

    private fun requireColumns(): Outcome<Unit> =
        requireThat(columns.isNotEmpty(), Reason.INVALID) { "report $title has no columns" }

    private fun cellsOf(row: R): List<String> = columns.map { it.read(row)?.toString() ?: "-" }

    private fun alignedLine(cells: List<String>, widths: List<Int>): String =
        cells.withIndex().joinToString("  ") { (index, cell) ->
            when (columns[index].side) {
                Side.LEFT -> cell.padEnd(widths[index])
                Side.RIGHT -> cell.padStart(widths[index])
            }
        }.trimEnd()
}
