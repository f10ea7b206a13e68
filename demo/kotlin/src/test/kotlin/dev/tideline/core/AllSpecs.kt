/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.core

import dev.tideline.alerts.AlertBoardSpec
import dev.tideline.berths.BerthPlannerSpec
import dev.tideline.containers.ContainerYardSpec
import dev.tideline.invoices.InvoiceWriterSpec
import dev.tideline.locks.LockKeeperSpec
import dev.tideline.routes.RouteFinderSpec
import dev.tideline.tides.TideTableSpec
import kotlin.system.exitProcess

private val ALL_SPECS: List<Spec> = listOf(
    AlertBoardSpec(),
    BerthPlannerSpec(),
    ContainerYardSpec(),
    InvoiceWriterSpec(),
    LockKeeperSpec(),
    OutcomeSpec(),
    RouteFinderSpec(),
    TideTableSpec(),
)

/** Runs the specs whose names contain a word and sums up their reports. */
class SpecRunner(private val specs: List<Spec>) {
    private val log = ledger<SpecRunner>()

    /** Runs the chosen specs, or refuses when the word chooses none of them. */
    fun runMatching(word: String): Outcome<List<SpecReport>> {
        val chosen = specs.filter { word in it::class.simpleName.orEmpty() }
        return requireThat(chosen.isNotEmpty(), Reason.NOT_FOUND) { "no spec is called $word" }
            .into { chosen.map { it.run() } }
            .onDone { reports -> log.note("specs.run", "specs" to reports.size) }
    }
}

/** Runs all specs, or those that are named by the first argument, and prints their reports. */
fun main(arguments: Array<String>) {
    LedgerOffice.sink = MemorySink()
    val failed = SpecRunner(ALL_SPECS)
        .runMatching(arguments.firstOrNull().orEmpty())
        .onDone { reports -> reports.forEach { println(it.render()) } }
        .onRefused { println(it.message) }
        .into { reports -> reports.sumOf { it.countFailed() } }
        .orElse { 1 }
    if (failed > 0) exitProcess(1)
}
