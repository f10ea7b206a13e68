/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.core

/** Tells how loudly a line of the ledger should be read. */
enum class LedgerLevel { NOTE, WARNING }

/** Holds one line of the ledger with its facts in the order in which they were given. */
data class LedgerLine(
    val level: LedgerLevel,
    val owner: String,
    val event: String,
    val facts: List<Pair<String, Any?>>,
) {
    /** Renders the line as `owner event key=value key=value`. */
    fun render(): String =
        buildString {
            append(if (level == LedgerLevel.WARNING) "! " else "  ")
            append(owner).append(' ').append(event)
            for ((key, value) in facts) {
                append(' ').append(key).append('=').append(quoted(value))
            }
        }

    private fun quoted(value: Any?): String {
        val text = value.toString()
        return if (' ' in text) "\"$text\"" else text
    }
}

/** Receives the lines of every ledger. */
fun interface LedgerSink {
    fun write(line: LedgerLine)
}

/** Keeps the last lines in memory, which is all that specs and simulations need. */
class MemorySink(private val capacity: Int = 256) : LedgerSink {
    private val lines = ArrayDeque<LedgerLine>()

    override fun write(line: LedgerLine) {
        if (lines.size == capacity) lines.removeFirst()
        lines.addLast(line)
    }

    /** Lists the lines that were written for the event. */
    fun listFor(event: String): List<LedgerLine> = lines.filter { it.event == event }
}

/** Chooses where the lines of all ledgers go. */
object LedgerOffice {
    var sink: LedgerSink = LedgerSink { line -> println(line.render()) }
}

/** Writes structured lines on behalf of one class. */
class Ledger(private val owner: String) {
    /** Notes something that went as planned. */
    fun note(event: String, vararg facts: Pair<String, Any?>) = write(LedgerLevel.NOTE, event, facts)

    /** Warns about something that somebody should look at. */
    fun warn(event: String, vararg facts: Pair<String, Any?>) = write(LedgerLevel.WARNING, event, facts)

    private fun write(level: LedgerLevel, event: String, facts: Array<out Pair<String, Any?>>) =
        LedgerOffice.sink.write(
            LedgerLine(
                level = level,
                owner = owner,
                event = event,
                facts = facts.toList(),
            ),
        )
}

/** Opens the ledger of the class. */
inline fun <reified T : Any> ledger(): Ledger = Ledger(T::class.simpleName ?: "somebody")
